"""The table of bad inputs: command lines, exit codes, and what must be said.

A command names its culprits in braces: a path of `world` (conftest.py), a file that broken.py
makes, or `out`, where nothing is. What stands in angle brackets is the beginning of a command.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdpipe.testing import TINY_RECIPE

__all__ = ["CASES", "FULL_DISK", "Case", "spelled"]

TINY = " ".join(f"--set {override}" for override in TINY_RECIPE)
BEGINNINGS = {
    "<prepare>": "prepare --workers 0 --out {out} --train",
    "<train>": "train-teacher <tiny> --out {out} --data",
    "<recipe>": "train-teacher --data {data} --out {out} --recipe",
    "<set>": f"train-teacher --data {{data}} --out {{out}} --recipe demo {TINY} --set",
    "<dump>": "teacher-dump --data {data} --out {out}.zarr --teacher",
    "<dump-data>": "teacher-dump --teacher {teacher} --out {out}.zarr --data",
    "<dump-out>": "teacher-dump --data {data} --teacher {teacher} --out",
    "<student>": f"train-student --data {{data}} --recipe demo {TINY} --out {{out}} --targets",
    "<decode>": "decode --data {data} --out {out} --model",
    "<audio>": "decode --model {student} --out {out}",
    "<tiny>": f"--recipe demo {TINY} --set teacher.training.epochs=1",
}


@dataclass(frozen=True)
class Case:
    """A command line and what must come of it.

    `says` must all be in what is printed: the culprit and the remedy. `keeps`: what a failed
    command leaves on purpose, because it says so and resumes.
    """

    id: str
    command: str
    code: int
    says: tuple[str, ...]
    keeps: tuple[str, ...] = ()


def case(name: str, command: str, *says: str, code: int = 1, keeps: tuple[str, ...] = ()) -> Case:
    return Case(name, command, code, says, keeps)


def spelled(command: str) -> str:
    """A command with its beginning written out."""
    for short, words in BEGINNINGS.items():
        command = command.replace(short, words)
    return command


USAGE = [
    case("no such command", "prepair", "'prepair'", "Did you mean prepare?", code=2),
    case("no such store command", "store inspect {store}", "'inspect'", "--help", code=2),
    case("no such option", "decode --modle x", "'--modle'", "--model", code=2),
    case("option without value", "decode --model", "--model", "kdpipe decode --help", code=2),
    case("required option missing", "train-teacher --out {out}", "--data", "--help", code=2),
    case("argument missing", "store info", "STORE", "kdpipe store info --help", code=2),
    case("too many arguments", "store info {store} {store_h5}", "unexpected", "--help", code=2),
    case("quiet and verbose", "store info -q -v {store}", "--quiet or --verbose", code=2),
    case("seed is no number", "<train> {data} --seed x", "'--seed'", "'x'", code=2),
    case("seed below 0", "<train> {data} --seed -1", "'--seed'", "0<=x<=4294967295", code=2),
    case("unknown device", "<train> {data} --device tpu", "'tpu'", "'cuda'", code=2),
]

MANIFESTS = [
    case("no manifest", "prepare --out {out}", "--train", "--from", code=2),
    case("missing manifest", "<prepare> {out}.jsonl", "{out}.jsonl", "JSON-lines manifest"),
    case("folder as manifest", "<prepare> {data}", "{data}", "JSON-lines manifest"),
    case("audio as manifest", "<prepare> {audio}", "{audio}", "not UTF-8", "manifest in UTF-8"),
    case("store as manifest", "<prepare> {store}", "{store}", "JSON-lines manifest"),
    case("HDF5 as manifest", "<prepare> {store_h5}", "{store_h5}", "manifest"),
    case("text as manifest", "<prepare> {text_file}", "{text_file}:1", "not JSON", "Mend"),
    case("line is not JSON", "<prepare> {not_json}", "{not_json}:3", "not JSON", "Mend"),
    case("line is no object", "<prepare> {not_object}", "{not_object}:1", "one object a line"),
    case("no audio_filepath", "<prepare> {no_audio_key}", "record 2", "no audio_filepath"),
    case("no duration", "<prepare> {no_duration}", "record 2: duration", "Give seconds"),
    case("duration is text", "<prepare> {duration_text}", "'1 s'", "Give seconds"),
    case("duration is NaN", "<prepare> {duration_nan}", "duration", "nan", "Give seconds"),
    case("duration below 0", "<prepare> {duration_negative}", "-1.0", "Give seconds >= 0"),
    case("text is a number", "<prepare> {text_number}", "text is not a string: 7", "Quote it"),
    case("unusable id", "<prepare> {bad_id}", "unusable id", "printable, trimmed"),
    case("empty manifest", "<prepare> {empty_manifest}", "{empty_manifest}", "It is empty"),
    case("no text at all", "<prepare> {no_text}", "no training text", "manifests with texts"),
    *(
        case(name, f"<prepare> {{{maker}}}", reason, "1 of 2", "--max-rejected", keeps=("out",))
        for name, maker, reason in (
            ("duplicate ids", "same_ids", "duplicate-id"),
            ("audio missing", "missing_audio", "missing-file"),
            ("audio is text", "fake_audio", "undecodable"),
            ("audio without samples", "no_samples", "empty-audio"),
        )
    ),
]

PREPARING = [
    case("bpe without size", "<prepare> {train_manifest} --tokenizer bpe", "--vocab-size"),
    case(
        "vocabulary too large",
        "<prepare> {train_manifest} --tokenizer bpe --vocab-size 5000",
        "vocab_size = 5000",
        "at most",
    ),
    case(
        "vocabulary too small",
        "<prepare> {train_manifest} --vocab-size 2",
        "too small",
        "4 or more",
    ),
    case("speed is no number", "<prepare> x --speed fast", "'fast'", "0.9,1.0,1.1", code=2),
    case("speed out of range", "<prepare> {train_manifest} --speed 5", "speed", "0.9,1.0,1.1"),
    case("rejected above 1", "<prepare> x --max-rejected 5", "'--max-rejected'", "0<=x<=1", code=2),
    case("only dev", "prepare --dev {dev_manifest} --out {out}", "no training split", "--train"),
    case(
        "like nothing", "<prepare> {train_manifest} --like {out}2", "{out}2", "--like prepared data"
    ),
    case(
        "like a manifest", "<prepare> {train_manifest} --like {text_file}", "{text_file}", "--like"
    ),
    case("no such layout", "prepare --from timit x --out {out}", "'timit'", "librispeech", code=2),
    case("no such corpus", "prepare --from kaldi {out}2 --out {out}", "{out}2", "wav.scp"),
    case("no such AISHELL", "prepare --from aishell1 {data} --out {out}", "{data}", "no "),
    case("no such LibriSpeech", "prepare --from librispeech {data} --out {out}", "{data}", "no "),
    case(
        "no such corpus split",
        "prepare --from kaldi {kaldi} --train trian --out {out}",
        "{kaldi}/trian",
        "train",
    ),
]

DATA = [
    case("no data", "<train> {out}2", "{out}2: no complete prepared data", "kdpipe prepare"),
    case("model as data", "<train> {teacher}", "{teacher}: no complete", "kdpipe prepare"),
    case("store as data", "<train> {store}", "{store}: no complete", "kdpipe prepare"),
    case("manifest as data", "<train> {train_manifest}", "{train_manifest}: no complete"),
    case("unfinished data", "<train> {unfinished_data}", "no complete", "run it again"),
    case("garbled data.json", "<train> {garbled_data}", "data.json: not JSON", "remake"),
    case("data.json without keys", "<train> {keyless_data}", "data.json", "--out"),
    case("newer data", "<train> {newer_data}", "format 99", "kdpipe prepare"),
    case("features cut short", "<train> {short_features}", "features.npy", "prepare again"),
    case("features gone", "<train> {lost_features}", "features.npy", "prepare again"),
    case("damaged tokenizer", "<train> {bad_tokenizer}", "tokenizer.model", "again"),
    case("damaged CMVN", "<train> {bad_cmvn}", "cmvn.safetensors", "remake"),
    case("no dev split", "<train> {no_dev}", "{no_dev}/dev", "--dev"),
    case("no such split to dump", "<dump> {teacher} --split eval", "{data}/eval", "train, dev"),
    case("no such split to decode", "<decode> {student} --split tset", "{data}/tset", "test"),
]

RECIPES = [
    case("no such recipe", "<recipe> an5", "an5", "Did you mean an4?"),
    case("folder as recipe", "<recipe> {data}", "{data}: no recipe", "demo"),
    case("audio as recipe", "<recipe> {audio}", "{audio}: not TOML", "demo"),
    case("recipe is not TOML", "<recipe> {broken_toml}", "{broken_toml}: not TOML", "Mend it"),
    case("recipe without models", "<recipe> {short_toml}", "{short_toml}: teacher", "Add the"),
    case("unknown key", "<set> teacher.training.epoch=3", "teacher.training.epoch", "epochs?"),
    case("unknown section", "<set> techer.training.epochs=3", "techer", "Did you mean teacher?"),
    case("wrong type", "<set> teacher.training.epochs=many", "'many'", "Give a whole number"),
    case("out of range", "<set> teacher.training.epochs=0", "epochs = 0", "from 1 to"),
    case("NaN", "<set> teacher.training.learning_rate=nan", "learning_rate = nan", "from 1e-08"),
    case("not a choice", "<set> teacher.training.schedule=step", "'step'", "noam, cosine"),
    case("no value", "<set> teacher.training.epochs", "not key=value", "epochs=20"),
    case("no stages", "<set> student.stages=[]", "student.stages", "at least one"),
    case("no such stage", "<set> student.stages.9.epochs=1", "no such entry", "from 0"),
    case("key inside a number", "<set> name.x=1", "name is not a table", "Name a key"),
    case("list for a table", "<set> teacher=[]", "teacher = []", "[teacher]"),
    case("even kernel", "<set> teacher.model.kernel=8", "kernel = 8", "odd number"),
    case("heads that do not divide", "<set> teacher.model.heads=5", "heads = 5", "dim = 32"),
    case("size and dim", "<set> teacher.model.size=M", "named size", "Remove them"),
    case("no width", "<set> teacher.model.dim=0", "dim, heads or inner", "Give all three"),
    case(
        "time warp with targets",
        "<student> {store} --set specaugment.time_warp=5",
        "time_warp = 5",
        "--targets",
    ),
]

TRAINING = [
    case("no GPU to train", "<train> {data} --device cuda", "no cuda device", "--device cpu"),
    case(
        "other seed",
        "train-teacher <tiny> --data {data} --out {teacher} --seed 1",
        "{teacher}",
        "seed: 0 -> 1",
        "another --out",
    ),
    case(
        "other recipe",
        "train-teacher --data {data} --recipe an4 --out {teacher}",
        "{teacher}",
        "specaugment.frequency_masks: 0 -> 2",
        "13 more",
        "another --out",
    ),
    case(
        "output of another command",
        "train-teacher <tiny> --data {data} --out {decoded}",
        "{decoded}",
        "command: 'decode' -> 'train-teacher'",
        "another --out",
    ),
    case(
        "checkpoint cut short",
        "train-teacher <tiny> --data {data} --out {cut_checkpoint}",
        "last.safetensors: damaged",
        "to begin anew",
    ),
    case(
        "garbled run.json",
        "train-teacher <tiny> --data {data} --out {garbled_run}",
        "run.json: not a run record",
        "another --out",
    ),
]

OUTPUTS = [
    case(name, spelled(command).replace("{out}", place), place.partition("/")[0], *remedy)
    for kind, command in {
        "data": "<prepare> {train_manifest}",
        "model": "<train> {data}",
        "words": "<decode> {student} --mode ctc",
    }.items()
    for name, place, remedy in (
        (f"file in place of {kind}", "{text_file}", ("cannot be written", "another --out")),
        (f"file above {kind}", "{text_file}/out", ("cannot be written", "another --out")),
        (f"others' files in place of {kind}", "{full_folder}", ("not of this", "another --out")),
        (f"{kind} into /proc", "/proc/kdpipe", ("cannot be written", "another --out")),
    )
]

MODELS = [
    case("no teacher", "<dump> {out}2", "{out}2: no model", "training or an import"),
    case("data as teacher", "<dump> {data}", "{data}: no model", "training or an import"),
    case("file as teacher", "<dump> {text_file}", "{text_file}: no model", "training or an"),
    case("student as teacher", "<dump> {student}", "{student}", "autoregressive", "train-teacher"),
    case("store as model", "<decode> {store}", "{store}: no model", "training or an import"),
    case("training unfinished", "<decode> {no_weights}", "weights.safetensors", "not finished"),
    case("weights cut short", "<decode> {cut_weights}", "weights.safetensors: damaged", "again"),
    case("other model's weights", "<decode> {other_weights}", "do not fit model.toml", "again"),
    case("garbled model.toml", "<decode> {garbled_model}", "model.toml: not TOML", "again"),
    case("newer model", "<decode> {newer_model}", "format version 9", "matching kdpipe"),
    case("impossible model", "<decode> {impossible_model}", "heads = 5", "Copy the model"),
    case(
        "other tokenizer in it", "<decode> {other_models_tokenizer}", "tokenizer.model", "Restore"
    ),
    case(
        "other tokenizer",
        "<dump-data> {other_tokens} --teacher {teacher}",
        "tokenizer of the data",
        "--like",
    ),
    case(
        "other features",
        "<dump-data> {other_features} --teacher {teacher}",
        "audio channel of the data",
        "first here, mix there",
        "--like",
    ),
]

DUMPING = [
    case("store without suffix", "<dump-out> {out}", "{out}", ".zarr or .h5"),
    case("file in place of a store", "<dump-out> {text_h5}", "{text_h5}", "no teacher store"),
    case("folder in place of a store", "<dump-out> {full_zarr}", "{full_zarr}", "another path"),
    case("store below a file", "<dump-out> {text_file}/s.zarr", "{text_file}/s.zarr", "write"),
    case("store into /proc", "<dump-out> /proc/kdpipe.zarr", "/proc/kdpipe.zarr", "write"),
    case("shard beyond", "<dump> {teacher} --shard 3/3", "'3/3'", "0 <= I < N", code=2),
    case("top-k of 0", "<dump> {teacher} --top-k 0", "'--top-k'", "1<=x", code=2),
    case("beam of 0 in the dump", "<dump> {teacher} --beam 0", "'--beam'", "1<=x", code=2),
    case("probability of 1", "<dump> {teacher} --min-prob 1", "'--min-prob'", "x<1.0", code=2),
    case("no GPU to dump", "<dump> {teacher} --device cuda", "no cuda device", "--device cpu"),
    case("other beam", "<dump-out> {store} --beam 3 --nbest 2", "{store}", "decode.beam: 2 -> 3"),
    case(
        "other top-k, unfinished",
        "<dump-out> {partial_copy} --beam 2 --nbest 2 --top-k 5",
        "{partial_copy}",
        "top_k",
        "another --out",
    ),
]

TARGETS = [
    case("no store", "<student> {out}.zarr", "{out}.zarr: no teacher store", "teacher-dump"),
    case("model as store", "<student> {teacher}", "{teacher}", ".zarr or .h5"),
    case("text as store", "<student> {text_h5}", "{text_h5}", "no teacher store"),
    case("unfinished store", "<student> {partial}", "{partial}", "3 utterances", "--allow-partial"),
    case("other data's tokens", "<student> {foreign_store}", "tokenizer must agree", "Dump"),
    case(
        "other data's features", "<student> {other_features_store}", "features must agree", "Dump"
    ),
    case("other subsampling", "<student> {subsampled_store}", "4 here, 8 there", "8", "Dump"),
    case("other split's store", "<student> {test_store}", "lacks 8", "teacher-dump"),
    case("store cut short", "<student> {cut_store}", "{cut_store}/records/c/0", "Copy or dump"),
    case("HDF5 store cut short", "<student> {cut_h5}", "{cut_h5}", "Copy or dump"),
    case("store without a chunk", "<student> {lost_chunk}", "{lost_chunk}/records/c/0", "Copy or"),
    case("store without its table", "<student> {lost_table}", "{lost_table}/table", "Copy or dump"),
    case("store with a flipped bit", "<student> {flipped_store}", "records/c/0", "--repair"),
    case("newer store", "<student> {newer_store}", "format 99 is newer than 1", "Upgrade kdpipe"),
    case(
        "unknown protocol", "<student> nosuch://bucket/s.zarr", "nosuch://bucket", "Check address"
    ),
]

DECODING = [
    case("nothing to decode", "<audio>", "--data", "audio files", code=2),
    case("data and audio", "<decode> {student} {audio}", "either --data", code=2),
    case("beam of 0", "<decode> {student} --beam 0", "'--beam'", "1<=x<=1000", code=2),
    case("threshold of 2", "<decode> {student} --mask-threshold 2", "0.0<=x<=1.0", code=2),
    case("no such mode", "<decode> {student} --mode rnnt", "'rnnt'", "'mask-ctc'", code=2),
    case("more words than beam", "<decode> {student} --nbest 20", "nbest = 20", "--beam 20"),
    case("n-best of greedy", "<decode> {student} --mode ctc --nbest 2", "nbest = 2", "--nbest 1"),
    case("student decoded as AR", "<decode> {student} --mode ar", "no ar decoder", "mask-ctc"),
    case("teacher decoded as NAR", "<decode> {teacher} --mode mask-ctc", "no mask-ctc", "ar"),
    case("no GPU to decode", "<decode> {student} --device cuda", "no cuda", "--device cpu"),
    case("missing audio", "<audio> {out}.wav", "{out}.wav", "Check the path"),
    case("folder as audio", "<audio> {data}", "{data}", "no audio file"),
    case("text as audio", "<audio> {text_audio}", "{text_audio}", "WAV or FLAC"),
    case("silent file of 0 s", "<audio> {nothing_wav}", "{nothing_wav}", "no samples"),
    case("two files of one name", "<audio> {audio} {same_stem}", "two audio", "Rename"),
    case(
        "other search",
        "decode --model {student} --data {data} --out {decoded} --mode mask-ctc",
        "{decoded}",
        "search.mode: 'ctc' -> 'mask-ctc'",
        "another --out",
    ),
]

STORES = [
    case("info of nothing", "store info {out}.zarr", "{out}.zarr", "Check the path"),
    case("info of text", "store info {text_h5}", "{text_h5}: no teacher store", "Check the path"),
    case("info of a model", "store info {teacher}", "{teacher}", ".zarr or .h5"),
    case("info of other HDF5", "store info {plain_h5}", "{plain_h5}: no teacher store", "Check"),
    case("info of other Zarr", "store info {plain_zarr}", "{plain_zarr}", "teacher store", "Check"),
    case("info of a newer store", "store info {newer_store}", "{newer_store}", "Upgrade kdpipe"),
    case("info of unknown protocol", "store info nosuch://a/b.zarr", "nosuch://a/b.zarr", "Check"),
    case("verify nothing", "store verify {out}.zarr", "{out}.zarr", "Check the path", code=2),
    case("verify a model", "store verify {teacher}", "{teacher}", ".zarr or .h5", code=2),
    case("verify half a store", "store verify {cut_store}", "records/c/0", "DAMAGED"),
    case("verify half an HDF5", "store verify {cut_h5}", "{cut_h5}", "DAMAGED"),
    case("repair without teacher", "store verify {store} --repair", "--teacher", "--data", code=2),
    case(
        "recompute with another teacher",
        "store verify {store} --recompute 2 --data {data} --teacher {other_teacher}",
        "teacher's weights",
        "Give the teacher",
    ),
    case(
        "repair with other data",
        "store verify {flipped_store} --repair --data {other_features} --teacher {teacher}",
        "audio channel",
        "--like",
    ),
    case("convert nothing", "store convert {out}.zarr {out}.h5", "{out}.zarr", "Check the path"),
    case("convert unfinished", "store convert {partial} {out}.h5", "{partial}", "still being"),
    case("convert damage", "store convert {flipped_store} {out}.h5", "train-005", "store verify"),
    case(
        "convert over another", "store convert {test_store} {store_h5}", "{store_h5}", "Remove it"
    ),
    case("convert to no suffix", "store convert {store} {out}", "{out}", ".zarr or .h5"),
    case("compact HDF5", "store convert {store} {out}.h5 --compact", "{out}.h5", "Name it .zarr"),
    case(
        "convert below a file",
        "store convert {store} {text_file}/s.h5",
        "{text_file}",
        "another path",
    ),
    case("convert into /proc", "store convert {store_h5} /proc/kdpipe.zarr", "/proc", "path"),
    case("copy nothing", "store copy {out}.zarr {out}2.zarr", "{out}.zarr", "Check the path"),
    case("copy unfinished", "store copy {partial} {out}.zarr", "{partial}", "still being written"),
    case("copy to another suffix", "store copy {store} {out}.h5", "{out}.h5", "store convert"),
    case(
        "copy over another",
        "store copy {store} {foreign_store}",
        "{foreign_store}",
        "something else",
    ),
    case("copy over files", "store copy {store} {full_zarr}", "{full_zarr}", "something", "remove"),
    case("copy over its damage", "store copy {store} {flipped_store}", "damaged copy", "remove"),
    case(
        "copy half a store",
        "store copy {cut_store} {out}.zarr",
        "{cut_store}",
        "store verify",
        keeps=(".out.copying.zarr",),
    ),
    case("copy from unknown", "store copy nosuch://a/b.zarr {out}.zarr", "nosuch", "Check address"),
    case("copy to unknown", "store copy {store} nosuch://a/b.zarr", "nosuch", "Check address"),
    case("copy below a file", "store copy {store} {text_file}/s.zarr", "{text_file}", "Check"),
    case("merge nothing", "store merge --out {out}.zarr", "STORE", "--help", code=2),
    case(
        "merge what is not there",
        "store merge {store} {out}2.zarr --out {out}.zarr",
        "{out}2.zarr",
        "Check the path",
    ),
    case(
        "merge other tokens",
        "store merge {store} {foreign_store} --out {out}.zarr",
        "{store}",
        "tokenizer",
        "{foreign_store}",
    ),
    case(
        "merge into what is there",
        "store merge {store} {test_store} --out {store_h5}",
        "{store_h5}",
        "Remove it",
    ),
    case(
        "average other utterances",
        "store merge {store} {test_store} --average --out {out}.zarr",
        "{test_store}",
        "manifest_digest",
        "same settings",
    ),
    case(
        "merge unfinished", "store merge {store} {partial} --out {out}.zarr", "{partial}", "still"
    ),
    case("diff with nothing", "store diff {store} {out}.zarr", "{out}.zarr", "Check the path"),
    case("card of nothing", "store card {out}.zarr", "{out}.zarr", "Check the path"),
    case("card onto a folder", "store card {store} --out {full_folder}", "{full_folder}", "--out"),
    case("card below a file", "store card {store} --out {text_file}/c.md", "{text_file}", "path"),
    case(
        "card onto a device", "store card {store} --out /dev/full", "/dev/full", "no ordinary file"
    ),
]

OTHERS = [
    case("demo onto a file", "demo --out {text_file}", "{text_file}", "another"),
    case("demo among others' files", "demo --out {decoded}", "{decoded}", "another"),
    case("import nothing", "import-teacher --from espnet2 {out}2 --out {out}", "{out}2", "there"),
    case(
        "import of nobody", "import-teacher --from kaldi x --out {out}", "'kaldi'", "'hf'", code=2
    ),
    case("import text", "import-teacher --from espnet2 {text_file} --out {out}", "{text_file}"),
    case("import a store", "import-teacher --from espnet2 {store} --out {out}", "{store}"),
    case("import data as HF", "import-teacher --from hf {data} --out {out}", "{data}"),
    case(
        "config of HF",
        "import-teacher --from hf {data} --out {out} --config c",
        "--config",
        "--from hf",
        code=2,
    ),
    case("report on nothing", "report {out}2 --out {out}.html", "{out}2"),
    case("report on no run", "report {full_folder} --out {out}.html", "{full_folder}"),
    case("report below a file", "report {teacher} --out {text_file}/r.html", "{text_file}", "path"),
]

CASES = [
    *USAGE,
    *MANIFESTS,
    *PREPARING,
    *DATA,
    *RECIPES,
    *TRAINING,
    *OUTPUTS,
    *MODELS,
    *DUMPING,
    *TARGETS,
    *DECODING,
    *STORES,
    *OTHERS,
]

FULL_DISK = [
    ("<prepare> {train_manifest}", "fsync"),
    ("<train> {data}", "fsync"),
    ("<decode> {student} --mode ctc", "fsync"),
    ("<dump> {teacher} --beam 2 --nbest 2", "pwrite"),
    ("<dump> {teacher} --beam 2 --nbest 2", "fsync"),
    ("store convert {store} {out}.h5", "fsync"),
    ("store convert {store_h5} {out}.zarr", "fsync"),
    ("store merge {store} {test_store} --out {out}.zarr", "pwrite"),
    ("store card {store} --out {out}.md", "fsync"),
    ("report {decoded} --out {out}.html", "fsync"),
]
"""Commands, and the call of the operating system that finds no space."""
