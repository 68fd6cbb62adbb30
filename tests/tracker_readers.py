"""What trackers hold, read back from the files of their offline modes.

Each reader gives (points, run): points are (name, step, value) of all metrics in the order of their arrival,
run is what the tracker knows of the run itself: name, tags, params, texts, files, state.
"""

import json
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Points = list[tuple[str, int, float]]


def read_tensorboard(folder: Path) -> tuple[Points, dict[str, Any]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
    from tensorboard.util.tensor_util import make_ndarray

    points: Points = []
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    run: dict[str, Any] = {"names": [path.name for path in runs], "texts": {}, "histograms": []}
    for file in sorted(folder.rglob("events.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                plugin = value.metadata.plugin_data
                if plugin.plugin_name == "hparams":
                    start = HParamsPluginData.FromString(plugin.content).session_start_info
                    run["params"] = dict(start.hparams)
                elif plugin.plugin_name == "text":
                    run["texts"][value.tag] = make_ndarray(value.tensor).item().decode()
                elif plugin.plugin_name == "histograms":
                    run["histograms"].append((value.tag, event.step, make_ndarray(value.tensor)))
                else:
                    points.append((value.tag, event.step, make_ndarray(value.tensor).item()))
    return points, run


def wandb_records(path: Path) -> Iterator[Any]:
    """The protocol messages of a .wandb file, which is a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, message = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place < len(data):
        left_in_block = 32_768 - place % 32_768
        if left_in_block < 7:
            place += left_in_block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield Record.FromString(message)
            message = b""


def read_wandb(folder: Path) -> tuple[Points, dict[str, Any]]:
    points: Points = []
    run: dict[str, Any] = {"names": [], "ids": set(), "rows": [], "summary": {}, "artifacts": {}, "exits": []}
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run["names"].append(record.run.display_name)
                run["ids"].add(record.run.run_id)
                run["tags"], run["project"] = list(record.run.tags), record.run.project
                run["params"] = {
                    entry.key: json.loads(entry.value_json) for entry in record.run.config.update
                }
            elif kind == "history":
                row = {
                    (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                    for item in record.history.item
                }
                run["rows"].append(record.history.step.num)
                points += [
                    (name, row["step"], value)
                    for name, value in row.items()
                    if name != "step" and not name.startswith("_")
                ]
            elif kind == "summary":
                for item in record.summary.update:
                    run["summary"][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            elif kind == "artifact":
                files = sorted(entry.path for entry in record.artifact.manifest.contents)
                run["artifacts"][record.artifact.type] = files
            elif kind == "exit":
                run["exits"].append(record.exit.exit_code)
    return points, run


def read_comet(folder: Path) -> tuple[Points, dict[str, Any]]:
    points: Points = []
    run: dict[str, Any] = {"ids": set(), "params": {}, "other": {}, "assets": []}
    for archive in sorted(folder.glob("*.zip"), key=lambda path: path.stat().st_mtime_ns):
        with zipfile.ZipFile(archive) as files:
            about = json.loads(files.read("experiment.json"))
            run["ids"].add(about["offline_id"])
            run["tags"], run["project"] = sorted(about["tags"]), about["project_name"]
            for line in files.read("messages.json").splitlines():
                message = json.loads(line)
                content = message["payload"]
                if message["type"] == "metric_msg" and not content["metric"]["metricName"].startswith("sys."):
                    metric = content["metric"]
                    points.append((metric["metricName"], metric["step"], float(metric["metricValue"])))
                elif message["type"] == "parameter_msg" and "param" in content:
                    run["params"][content["param"]["paramName"]] = content["param"]["paramValue"]
                elif message["type"] == "log_other":
                    run["other"][content["key"]] = content["value"]
                elif message["type"] == "file_upload":
                    run["assets"].append(content)
    return points, run


def read_mlflow(folder: Path) -> tuple[Points, dict[str, Any]]:
    database = sqlite3.connect(folder / "mlflow.db")
    select = database.execute
    points = select("SELECT key, step, value FROM metrics ORDER BY timestamp, step").fetchall()
    run = {
        "names": [row[0] for row in select("SELECT name FROM runs")],
        "states": [row[0] for row in select("SELECT status FROM runs")],
        "tags": dict(select("SELECT key, value FROM tags").fetchall()),
        "params": dict(select("SELECT key, value FROM params").fetchall()),
        "files": sorted(path.name for path in (folder / "artifacts").rglob("*") if path.is_file()),
        "project": select("SELECT name FROM experiments WHERE name != 'Default'").fetchone()[0],
    }
    database.close()
    return points, run


READERS = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "comet": read_comet,
    "mlflow": read_mlflow,
}
