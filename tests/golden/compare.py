"""Comparison: a result split into aspects, literally or but for what no peer can notice."""

import copy
import json


def views(e):
    """Splits one result into the aspects that are compared."""
    v = {
        "status": [],
        "headers": [],
        "body": [],
        "fate": [],
        "upstream": [],
        "upstream_conn": [],
        "access_log": e.get("access_log", []),
        "timing": e.get("timing"),
    }
    for o in e["downstream"]:
        v["fate"].append({k: o.get(k) for k in ("fate", "tls_error", "alpn", "connect", "extra")})
        for m in o.get("messages", []):
            v["status"].append([m.get("status_line"), m.get("incomplete"), m.get("partial")])
            v["headers"].append(m.get("headers"))
            v["body"].append(
                {k: m.get(k) for k in ("framing", "body_len", "body_sha256", "trailers", "raw", "raw_len", "raw_sha256", "eof")}
            )
        h = o.get("h2")
        if h:
            for sid, s in sorted(h["streams"].items(), key=lambda x: int(x[0])):
                v["status"].append([sid, s["status"], s.get("reset"), s["ended"]])
                v["headers"].append([s["headers"], s.get("informational")])
                v["body"].append([s["body_len"], s["body_sha256"], s.get("trailers")])
            v["fate"].append([h.get("goaway"), h.get("ping_acks")])
    for r in e["upstream"]:
        v["upstream"].append({k: x for k, x in r.items() if k not in ("conn", "serve_error")})
        v["upstream_conn"].append([r["server"], r["conn"]])
    if e.get("crashed"):
        v["status"].append("CRASHED")
    return v


def equivalent(v):
    """Everything, but for header name case and for the order of headers of different names (same-named ones keep theirs)."""
    v = copy.deepcopy(v)

    def norm(h):
        if not isinstance(h, list):
            return h
        if h and all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) for p in h):
            return sorted(([a.lower(), b] for a, b in h), key=lambda p: p[0])
        return [norm(x) for x in h]

    v["headers"] = norm(v["headers"])
    for r in v["upstream"]:
        if "head" in r:
            r["head"] = [r["head"][0]] + sorted(
                (l.partition(":")[0].lower() + ":" + l.partition(":")[2] for l in r["head"][1:]),
                key=lambda l: l.partition(":")[0],
            )
        if "headers" in r:
            r["headers"] = sorted(r["headers"], key=lambda p: p[0])
    return v


def diff(a, b, path=""):
    if type(a) is type(b) and isinstance(a, dict):
        return [d for k in sorted(set(a) | set(b), key=str) for d in diff(a.get(k), b.get(k), f"{path}.{k}")]
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b) or not a or isinstance(a[0], str):
            return [] if a == b else [f"{path}: expected {json.dumps(a)[:900]}\n{' ' * 10}got      {json.dumps(b)[:900]}"]
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in diff(x, y, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: expected {json.dumps(a)[:600]}\n{' ' * 10}got      {json.dumps(b)[:600]}"]
