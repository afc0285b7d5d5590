"""Files get their names complete and flushed: what writes one does so by `dlrm_jax.files`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "dlrm_jax"
HELPERS = ("files.py", "workspaces.py")
WRITERS = {
    "write_text",
    "write_bytes",
    "write_parquet",
    "write_csv",
    "savefig",
    "rename",
    "replace",
}
OF_MODULES = {
    "np.save",
    "np.savez",
    "os.rename",
    "os.replace",
    "shutil.move",
    "shutil.copytree",
    "shutil.copy2",
    "copy_directory",
}

# Functions that write outside of a `with replacing(…)` or `creating(…)`, and why they may.
ALLOWED = {
    "artifact/delta.py: write_delta": "its caller's directory is that of `creating`",
    "artifact/delta.py: write_note": "its caller's directory is that of `creating`",
    "artifact/manifest.py: write": "its caller's directory is that of `creating`",
    "artifact/tables.py: write_rows": "its caller's directory is that of `creating`",
    "cli/generate.py: write_log": "its caller's directory is that of `creating`",
    "cli/page.py: picture": "the picture is made in memory",
    "conversion/onnx_model.py: _write_tables": "its caller's directory is that of `creating`",
    "conversion/safetensors_file.py: write_safetensors": "its caller's path is that of `creating`",
    "copied_files.py: copy_directory": "its caller's directory is that of one of the two",
    "data/formats/npy.py: __init__": "its callers give it a path of `replacing` or `creating`",
    "data/formats/npy.py: member": "a part of such a file",
    "data/generated/example_files.py: write_raw": "its caller's path is that of `creating`",
    "data/generated/locality.py: save": "its caller's path is that of `creating`",
    "data/movielens/formats.py: _ratings_with_header": "it renames columns",
    "data/preprocessing/serving.py: _measured": "it replaces values",
    "inference/pruned_run.py: _write": "its caller's directory is that of `creating`",
    "inference/frame_file.py: write_frames": "files of a scratch directory",
    "native/compiler.py: __init__": "a file of a scratch directory",
    "native/library.py: build": "the file gets its name by `move_into_place`, which flushes it",
    "requests/encoded_log.py: _write": "its caller's directory is that of `creating`",
    "retrieval/index/index_files.py: write_index": "its caller's directory is that of `creating`",
    "serving/export.py: copy_vocabularies": "its caller's directory is that of `creating`",
    "serving/export.py: write_dense": "its caller's directory is that of `creating`",
    "serving/table_variants.py: keep": "files within that directory get their last names",
    "data/preprocessing/raw_ids.py: ids_of": "it replaces values",
    "training/journal_files.py: set_entries_aside": "entries get another directory",
    "stream/noted_schema.py: with_schema": "`move_into_place` flushes the file and names it",
    "training/metadata.py: write_metadata": "the checkpoint is flushed when it is complete",
    "training/record.py: _open": "lines are appended, and flushed before each checkpoint",
    "training/retention.py: set_aside": "a damaged checkpoint gets another name",
}


def is_writer(call: ast.Call) -> bool:
    """Whether a call writes or renames a file. Renaming columns and replacing text don't."""
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if last == "open":
        modes = [x.value for x in [*call.args, *(k.value for k in call.keywords)]
                 if isinstance(x, ast.Constant)]  # fmt: skip
        return any(isinstance(x, str) and len(x) < 4 and set(x) & set("wax+") for x in modes)
    if name in OF_MODULES:
        return True
    if "." not in name or last not in WRITERS:  # `write_text` alone is that of `files`
        return False
    return last not in ("rename", "replace") or (
        len(call.args) == 1 and not call.keywords and not isinstance(call.args[0], ast.Dict)
    )


def unsafe(node: ast.AST, function: str = "") -> Iterator[str]:
    """The functions of the writing calls that are in no block of a helper."""
    if isinstance(node, ast.With):
        names = {x.id for item in node.items for x in ast.walk(item) if isinstance(x, ast.Name)}
        if names & {"replacing", "creating"}:
            return
    if isinstance(node, ast.FunctionDef):
        function = node.name
    if isinstance(node, ast.Call) and is_writer(node):
        yield function
    for child in ast.iter_child_nodes(node):
        yield from unsafe(child, function)


def test_whatever_writes_a_file_flushes_it_first():
    found = {
        f"{path.relative_to(PACKAGE)}: {function}"
        for path in PACKAGE.rglob("*.py")
        if str(path.relative_to(PACKAGE)) not in HELPERS
        for function in unsafe(ast.parse(path.read_text()))
    }
    assert sorted(found) == sorted(ALLOWED)
