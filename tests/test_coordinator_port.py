import socket

import pytest

from dlrm_jax.coordinator import join
from dlrm_jax.errors import UserError


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_in_use_is_refused_before_jax_takes_it(family: socket.AddressFamily):
    address = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError as error:
        pytest.skip(f"{address}: {error}")
    with listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match="expected a free port of this machine"):
            join(f"[{address}]:{port}" if ":" in address else f"{address}:{port}", 2, 0)
