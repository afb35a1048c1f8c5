"""Steps of the 7B model on a GPU that computes nothing: what a real one would be asked to do. It needs no GPU.

    PYTHONPATH=. python scripts/bench/dry_run.py                      # all cases
    PYTHONPATH=. python scripts/bench/dry_run.py --case lora_voice --costly

Shapes, types and operators are the real ones, values do not exist. Peaks are those of all tensors that are alive, with
neither the scratch memory inside of kernels nor gaps nor CUDA's context. Milliseconds are an estimate for an H100: for
each kernel the longest of its FLOPs at 65 % of the peak (45 % in fused attention), its bytes at 80 % of the bandwidth,
and 3 microseconds. Exchange between GPUs is not in them. It needs a C++ compiler and a build of torch for CPUs.
"""

import argparse
from pathlib import Path

from common import table, write_json

from tests.dry_run.fake_gpu import build
from tests.dry_run.run import NAMES, run_dry


def main() -> None:
    about, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=NAMES, nargs="+", default=NAMES, help="steps to run (default: all)")
    parser.add_argument("--costly", action="store_true", help="name the places that pass over memory most")
    parser.add_argument("--json", type=Path, help="write the figures")
    args = parser.parse_args()
    try:
        library = build()
    except RuntimeError as why:
        parser.error(str(why))
    found = {name: run_dry(name, library) for name in args.case}
    print(table([{"step": name, **columns["table"]} for name, columns in found.items()]))
    for name, columns in found.items():
        for fault, times in columns["faults"].items():
            print(f"{name}: {fault} ({times} times)")
        for place, seconds in columns["costly"].items() if args.costly else ():
            print(f"{name}: {place}: {1e3 * seconds:.1f} ms")
    write_json(args.json, found)


if __name__ == "__main__":
    main()
