#!/usr/bin/env python3
"""Replays what a real Envoy did against skiff, request by request, and scores the outcome. See README.md.

golden.py                               every scenario; the table, and a diff for each that differs
golden.py --only 'rbac,path.*'          some categories or scenarios
golden.py --check                       fail when a category scores less than score.json says
"""

import argparse
import concurrent.futures
import fnmatch
import glob
import json
import os
import subprocess
import sys
import tempfile

import yaml

from client import HERE
from compare import diff, equivalent, views
from runner import ProxyFailed, Runner

# Profiles that run side by side, each group in a network namespace of its own, about equally long.
GROUPS = (("inbound",), ("outbound", "policy"), ("mtls", "resilience", "tcp", "tls"))
SCORE = f"{HERE}/score.json"
DEVIATIONS = f"{HERE}/deviations.yaml"


def scenarios(only):
    """The scenarios whose name or category matches one of the globs."""
    found = []
    for path in sorted(glob.glob(f"{HERE}/scenarios/*.json")):
        with open(path) as file:
            scenario = json.load(file)
        names = (scenario["name"], scenario["category"])
        if not only or any(fnmatch.fnmatch(name, glob_) for name in names for glob_ in only):
            found.append(scenario)
    return found


def deviations():
    """The globs of deviations.yaml; every entry has its reason."""
    with open(DEVIATIONS) as file:
        entries = yaml.safe_load(file) or []
    for entry in entries:
        if not (entry.get("scenario") and entry.get("reason")):
            sys.exit(f"{DEVIATIONS}: every entry needs scenario and reason: {entry}")
    return [entry["scenario"] for entry in entries]


def compare(runner, scenario, listed, attempts):
    """Plays one scenario until it is equivalent, at most `attempts` times: some leave state behind, some race on a slow machine."""
    for attempt in range(attempts):
        if attempt:
            runner.stop()
        try:
            got = runner.execute(scenario)
        except ProxyFailed as error:
            got = {"downstream": [{"connect": str(error)}], "upstream": [], "access_log": []}
        expected, seen = views(scenario["expected"]), views(got)
        differs = [aspect for aspect in expected if expected[aspect] != seen[aspect]]
        same = equivalent(expected) == equivalent(seen)
        if same:
            break
    verdict = "identical" if not differs else "equivalent" if same else "listed" if is_listed(scenario, listed) else "different"
    lines = [] if same else [line for aspect in differs for line in diff(expected[aspect], seen[aspect], aspect)[:6]]
    return {"name": scenario["name"], "category": scenario["category"], "verdict": verdict, "diff": lines}


def is_listed(scenario, listed):
    return any(fnmatch.fnmatch(scenario["name"], glob_) for glob_ in listed)


def play_group(arguments):
    """Plays one group's scenarios, in the namespace that this process was started in."""
    profiles = arguments.group.split(",")
    runner, listed, results = Runner(f"{arguments.proxy} proxy -c {{bootstrap}}"), deviations(), []
    mine = [scenario for scenario in scenarios(arguments.only) if scenario["config"] in profiles]
    try:
        for scenario in sorted(mine, key=lambda scenario: (profiles.index(scenario["config"]), scenario["name"])):
            results.append(compare(runner, scenario, listed, arguments.attempts))
    finally:
        runner.stop()
    with open(arguments.out, "w") as file:
        json.dump(results, file)


def in_namespace(group, arguments):
    """Runs this program for one group in a private network namespace, so that its ports collide with nothing."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, __file__, "--group", ",".join(group), "--out", out.name, "--proxy", arguments.proxy]
        command += ["--attempts", str(arguments.attempts)]
        if arguments.only:
            command += ["--only", ",".join(arguments.only)]
        inside = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]
        subprocess.run(inside, check=True, timeout=1800)
        with open(out.name) as file:
            return json.load(file)


def score(results):
    """For every category: scenarios, identical ones, equivalent or better, those and the listed ones."""
    table = {}
    for result in results:
        row = table.setdefault(result["category"], {"scenarios": 0, "identical": 0, "equivalent": 0, "accepted": 0})
        row["scenarios"] += 1
        row["identical"] += result["verdict"] == "identical"
        row["equivalent"] += result["verdict"] in ("identical", "equivalent")
        row["accepted"] += result["verdict"] != "different"
    return dict(sorted(table.items()))


def fallen(table):
    """What scores less than score.json says."""
    with open(SCORE) as file:
        wanted = json.load(file)
    return [
        f"{category}: {table[category]['accepted']} of {table[category]['scenarios']} accepted, score.json says {least}"
        for category, least in wanted.items()
        if category in table and table[category]["accepted"] < least
    ]


def report(results):
    """Prints the diffs and the table; returns the table."""
    for result in results:
        if result["verdict"] in ("different", "listed"):
            print(f"{result['verdict'].upper()} {result['name']}")
        if result["verdict"] == "different":
            print("".join(f"    {line}\n" for line in result["diff"]), end="")
    table = score(results)
    print(f"\n{'category':14}{'scenarios':>10}{'identical':>10}{'equivalent':>11}{'or listed':>10}")
    for category, row in table.items():
        print(f"{category:14}{row['scenarios']:10}{row['identical']:10}{row['equivalent']:11}{row['accepted']:10}")
    total = {key: sum(row[key] for row in table.values()) for key in ("scenarios", "identical", "equivalent", "accepted")}
    print(
        f"\n{total['identical']} of {total['scenarios']} identical, {total['equivalent']} equivalent, "
        f"{total['accepted']} equivalent or a listed deviation ({100 * total['accepted'] / max(total['scenarios'], 1):.1f} %)"
    )
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", default=f"{HERE}/../../target/debug/skiff", help="the binary")
    parser.add_argument("--only", type=lambda text: text.split(","), help="comma list of globs of names or categories")
    parser.add_argument("--attempts", type=int, default=2, help="times that a differing scenario is played")
    parser.add_argument("--check", action="store_true", help="fail when a category scores less than score.json")
    parser.add_argument("--write-score", action="store_true", help="make score.json say what was reached")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.proxy = os.path.abspath(arguments.proxy)
    if arguments.group:
        return play_group(arguments)
    with concurrent.futures.ThreadPoolExecutor(len(GROUPS)) as pool:
        results = [result for group in pool.map(lambda group: in_namespace(group, arguments), GROUPS) for result in group]
    table = report(results)
    if arguments.write_score:
        with open(SCORE, "w") as file:
            json.dump({category: row["accepted"] for category, row in table.items()}, file, indent=1)
            file.write("\n")
    if arguments.check and (falls := fallen(table)):
        sys.exit("the score fell:\n" + "\n".join(falls))


if __name__ == "__main__":
    main()
