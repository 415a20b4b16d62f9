"""Compares what Autobahn saw of two agents, directly and through skiff: autobahn_compare.py index.json."""
import json
import sys

with open(sys.argv[1]) as file:
    agents = json.load(file)
direct, skiff = agents["direct"], agents["skiff"]
if not direct or direct.keys() != skiff.keys():
    sys.exit(f"{len(direct)} cases directly, {len(skiff)} through skiff")
aspects = ("behavior", "behaviorClose", "remoteCloseCode")


def seen(report):
    # Which of the two it is depends on whether an echo overtakes the close that follows it: on time, not on bytes.
    return ["OK" if report[aspect] == "NON-STRICT" else report[aspect] for aspect in aspects]


different = [case for case in direct if seen(direct[case]) != seen(skiff[case])]
for case in different:
    print(f"case {case}:", *(f"{aspect} {direct[case][aspect]} -> {skiff[case][aspect]}" for aspect in aspects))
good = sum(direct[case]["behavior"] in ("OK", "NON-STRICT", "INFORMATIONAL") for case in direct)
print(f"{len(direct)} cases, {good} pass directly, {len(different)} end differently through skiff")
sys.exit(bool(different))
