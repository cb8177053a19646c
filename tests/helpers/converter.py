"""llama.cpp's converter, imported once: importing torch and transformers takes most of a conversion."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.sharing.gguf import converter_child
from pruning.sharing.gguf.types import converter_folder

_FORKING = """
import json, os, sys
sys.path.append(sys.argv[1])
from converter_child import child
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/gguf-py"]
import conversion, gguf, transformers
from transformers import AutoTokenizer
for line in sys.stdin:
    extra, arguments, log = json.loads(line)
    if (pid := os.fork()) == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv = ["convert", *arguments]
        try:
            child.patch(extra)
            child.runpy.run_path(sys.path[0] + "/convert_hf_to_gguf.py", run_name="__main__")
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(0 if isinstance(error, SystemExit) and not error.code else 1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class ForkingConverter:
    """A process that has imported the converter, and forks for each conversion."""

    def __enter__(self) -> "ForkingConverter":
        folder = Path(converter_child.__file__).parents[1]
        arguments = [sys.executable, "-I", "-c", _FORKING, str(folder), str(converter_folder())]
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def convert(self, folder: Path, output: Path, type: str, facts: Mapping[str, Any]) -> str | None:
        """Convert a saved model.

        Args:
            folder: The folder that holds it.
            output: The file to write.
            type: `f16`, `bf16` or `f32`.
            facts: Additional metadata to write, by key.

        Returns:
            The last line that the converter printed if it failed.
        """
        general = {key: value for key, value in facts.items() if key.startswith("general.")}
        described, log = output.with_suffix(".json"), output.with_suffix(".log")
        described.write_text(json.dumps(general), encoding="utf-8")
        extra = {key: value for key, value in facts.items() if key not in general}
        arguments = ["--outtype", type, "--outfile", output, "--metadata", described, folder]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([extra, [*map(str, arguments)], str(log)]) + "\n")
        self._process.stdin.flush()
        failed = self._process.stdout.readline().strip() != "0"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        for file in (described, log):
            file.unlink()
        return (lines or ["nothing"])[-1] if failed else None
