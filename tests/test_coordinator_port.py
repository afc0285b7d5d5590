import socket

import pytest

from dlrm_jax.coordinator import join
from dlrm_jax.errors import UserError


def test_a_port_in_use_is_refused_before_jax_takes_it():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match="expected a free port of this machine"):
            join(f"127.0.0.1:{port}", 2, 0)
