"""Run benchmarks by name: `python -m benchmarks NAME … [options of one benchmark]`."""

import argparse
import importlib
import platform
import sys
from collections.abc import Sequence
from datetime import date
from functools import cache
from itertools import takewhile

import torch

from benchmarks.common import Unavailable
from pruning.runtime import configure

DEFAULT = {
    "quality": "perplexity of pruned models over the base's, beside OptiPFair's",
    "pruning_time": "time to prune, over a copy of the new tensors, beside OptiPFair's",
    "calibration": "the calibration pass, over a plain forward pass",
    "generation": "tokens per second and prefill of pruned models, over the base's",
    "memory": "peak memory of pruning and of streaming",
    "startup": "`python app.py` to a page that answers, and to a model that is ready",
    "page_latency": "slider to new parameter count, and Prune to the first new token, in a browser",
}
"""What runs if no benchmark is named."""

LONG = {
    "peer": "three jobs beside OptiPFair: loss, and seconds from the call to the model in hand",
    "answers": "good answers kept and skills of pruned models, by calibration text",
    "distillation": "the share of the lost quality that distillation recovers, and its arithmetic speed",
    "gguf_matrix": "every family and step exported to GGUF: right, or refused with the reason",
    "quantize": "quality against bytes on disk, of pruned models in GGUF types",
    "reconstruction": "perplexity before and after reconstruction, and its time",
    "load": "many visitors at the same time, over HTTP, while workers are killed",
    "class": "thirty clients of one lesson and of one recipe, and what a visitor waits for in a browser",
    "presses": "fifty visitors press Prune: how many see an answer within twenty seconds",
    "attack": "hostile inputs in a container's memory, beside an honest visitor",
    "beside": "Prune while another visitor distills, over an idle page, and the death of either's worker",
}
"""Some minutes to half an hour each: these run only if named."""

BENCHMARKS = DEFAULT | LONG
FORMER_NAMES = {"load_test": "load"}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmarks named in `arguments`, or the default ones.

    Returns:
        The exit status: 2 if a name is unknown or a benchmark lacks what it needs, such as a data set.
    """
    given = list(takewhile(lambda word: not word.startswith("-"), arguments))
    names, options = [FORMER_NAMES.get(name, name) for name in given], arguments[len(given) :]
    parser = _parser()
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    if options and len(names) != 1:
        parser.parse_args([word for word in options if word in ("-h", "--help")])
        parser.error("options belong to one benchmark: name exactly one before them")
    configure()
    missing = 0
    for name in names or DEFAULT:
        try:
            _run(name, options)
        except Unavailable as reason:
            missing += 1
            print(f"{name}: {reason}", file=sys.stderr)
    return 2 if missing else 0


def _run(name: str, options: Sequence[str]) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if hasattr(module, "add_options"):
        module.add_options(parser)
    values = vars(parser.parse_args(options))
    _print_machine()
    module.main(**values)


@cache
def _print_machine() -> None:
    threads = torch.get_num_threads()
    print(f"{date.today()}, {platform.machine()}, {threads} threads, torch {torch.__version__}")


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, BENCHMARKS))

    def listed(benchmarks: dict[str, str]) -> str:
        return "\n".join(f"  {name:<{width}}  {line}" for name, line in benchmarks.items())

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        usage="python -m benchmarks [NAME …] [--help | options of one benchmark]",
        description="Measure quality, speed and memory. What each one measures:",
        epilog=f"{listed(DEFAULT)}\n\nsome minutes to half an hour each, only if named:\n{listed(LONG)}\n\n"
        "`python -m benchmarks NAME --help` shows the options of a benchmark.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
