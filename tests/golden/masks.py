"""Masks: what differs from run to run (times, ids, ephemeral ports). Everything else is compared literally."""

import json
import re

UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-([0-9a-f])[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b")
EPHEMERAL = re.compile(r"\b(127\.0\.0\.\d+):(\d{5})\b")
TEXT_LINE = re.compile(r'^\[(\S+)\] ("(?:.*)" \d+ \S+ \S+ .*? ".*?") (\d+) (\d+) (\d+) (\S+) (".*)$', re.S)


def mask_text(s, literal):
    s = UUID.sub(lambda m: m.group(0) if m.group(0) in literal else f"<UUIDv{m.group(1)}>", s)
    return EPHEMERAL.sub(lambda m: f"{m.group(1)}:<EPHEMERAL>" if int(m.group(2)) >= 32768 else m.group(0), s)


def mask_header(k, v, literal):
    lk = k.lower()
    if lk == "date" and re.match(r"^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$", v):
        return "<DATE>" if v not in literal else v
    if lk == "x-envoy-upstream-service-time" and v.isdigit() and v != "777":
        return "<MS>"
    if lk == "x-ratelimit-reset" and v.isdigit():
        return "<SECONDS>"
    if lk == "x-envoy-expected-rq-timeout-ms" and v.isdigit():
        return v
    return mask_text(v, literal)


def mask_log(line, literal):
    if line.startswith("{"):
        d = json.loads(line)
        for k in ("start_time",):
            d[k] = "<TIME>"
        for k in ("duration", "upstream_service_time"):
            if isinstance(d.get(k), (int, float)) or str(d.get(k, "")).isdigit():
                d[k] = f"<{type(d[k]).__name__}>"
        return mask_text(json.dumps(d, sort_keys=True), literal)
    m = TEXT_LINE.match(line)
    if m:
        svc = "<MS>" if m.group(6).isdigit() and m.group(6) != "777" else m.group(6)
        line = f"[<TIME>] {m.group(2)} {m.group(3)} {m.group(4)} <MS> {svc} {m.group(7)}"
    return mask_text(line, literal)
