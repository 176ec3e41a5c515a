"""The bundled sample: 1,000 questions, ten models, from ZeroEval (Apache-2.0); see data/README.md."""

from importlib.resources import as_file, files

from eccos_integrations.outcomes import OutcomeTable


def load_sample() -> OutcomeTable:
    """Outcomes of ten language models on 1,000 questions of GSM8K and CRUXEval-O.

    Source: WildEval/ZeroEval result files, Apache-2.0; questions from GSM8K and CRUXEval, MIT.

    Example:
        >>> load_sample()
        OutcomeTable(1000 queries x 10 models, 100% observed)
    """
    with as_file(files("eccos_integrations") / "data" / "sample.jsonl.gz") as path:
        return OutcomeTable.read(path)
