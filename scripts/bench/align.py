"""Compares word times of the Fisher importer with the truth of synthetic calls, by engine and by noise of the line.

python scripts/bench/align.py --engines espeak --noise -62 -45 -35
"""

import argparse
import tempfile
from pathlib import Path

from common import table, write_json

from data_pipelines.execution.executor import Executor
from data_pipelines.recordings.fisher.importer import import_corpus
from data_pipelines.recordings.fisher.job import FisherSettings
from data_pipelines.recordings.windows import WindowLimits
from data_pipelines.records.folder import find_dialogues, load_dialogue
from data_pipelines.standin.standin import make_truth_corpus
from data_pipelines.standin.truth import word_errors


def main() -> None:
    """Runs the benchmark of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["espeak"], choices=["espeak", "kokoro"])
    parser.add_argument("--noise", nargs="+", type=float, default=[-62.0, -45.0, -35.0], help="dBFS; speech is at -24")
    parser.add_argument("--calls", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for engine in args.engines:
        for noise in args.noise:
            with tempfile.TemporaryDirectory() as folder:
                corpus, out = Path(folder, "corpus"), Path(folder, "out")
                make_truth_corpus(corpus, args.calls, args.seconds, args.seed, engine, noise)
                settings = FisherSettings(seed=0, limits=WindowLimits(max_seconds=60.0), voice_seconds=4.0, licence="")
                report = import_corpus([corpus], out, settings, executor=Executor(workers=args.workers))
                errors = word_errors([load_dialogue(path) for path in find_dialogues([out])], corpus / "truth")
                rows.append({"engine": engine, "noise dBFS": noise, "calls": report.recordings} | errors.figures())
    print(table(rows))
    write_json(args.json, {"calls": args.calls, "seconds": args.seconds, "seed": args.seed, "rows": rows})


if __name__ == "__main__":
    main()
