"""One proxy process per profile, and one scenario after the other through it."""

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

from client import HERE, LISTENERS, Conn, sdata
from masks import mask_header, mask_log, mask_text
from upstream import SERVERS, Upstream

READY = "http://127.0.0.1:28000/ready"
# Statuses after which Envoy closes: their fate is watched for longer.
CLOSING = (400, 408, 413, 414, 426, 431)


class ProxyFailed(Exception):
    """The proxy did not start for a profile."""


class Proxy:
    """The proxy under test, started in a directory of its own with the profile's bootstrap, certificates and log folder."""

    def __init__(self, command, profile):
        self.profile = profile
        self.directory = tempfile.mkdtemp(prefix="golden-")
        os.mkdir(self.directory + "/logs")
        shutil.copytree(HERE + "/certs", self.directory + "/certs")
        shutil.copy(f"{HERE}/configs/{profile}.yaml", self.directory + "/bootstrap.yaml")
        self.output = open(self.directory + "/proxy.log", "w+b")
        self.process = subprocess.Popen(
            shlex.split(command.replace("{bootstrap}", "bootstrap.yaml")),
            cwd=self.directory,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
        )
        try:
            self._await_ready()
        except ProxyFailed:
            self.stop()
            raise

    def _await_ready(self):
        end = time.time() + 20
        while time.time() < end:
            if not self.alive():
                self.output.seek(0)
                said = self.output.read()[-1500:].decode(errors="replace")
                raise ProxyFailed(f"{self.profile}: exit code {self.process.returncode}: {said}")
            try:
                if urllib.request.urlopen(READY, timeout=0.5).status == 200:
                    return
            except OSError:
                time.sleep(0.05)
        raise ProxyFailed(f"{self.profile}: {READY} did not answer 200 within 20 s")

    def alive(self):
        return self.process.poll() is None

    def log(self):
        """Everything in the access log so far."""
        try:
            with open(self.directory + "/logs/access.log", "rb") as file:
                return file.read().decode("latin-1")
        except OSError:
            return ""

    def stop(self):
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        except ProcessLookupError:
            pass
        self.output.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Runner:
    """Plays scenarios; starts the proxy of a scenario's profile when it is not the one that runs."""

    def __init__(self, command):
        self.command = command
        self.proxy = None
        self.failed = {}
        self.upstream = Upstream()
        self.upstream.start()

    def stop(self):
        if self.proxy:
            self.proxy.stop()
            self.proxy = None

    def start(self, profile):
        if self.proxy and self.proxy.profile == profile and self.proxy.alive():
            return
        self.stop()
        if profile in self.failed:
            raise ProxyFailed(self.failed[profile])
        try:
            self.proxy = Proxy(self.command, profile)
        except ProxyFailed as error:
            self.failed[profile] = str(error)
            raise

    def execute(self, scenario):
        """What the caller saw, what the upstream saw, and the log, masked."""
        self.start(scenario["config"])
        self.upstream.reset(scenario.get("upstream"))
        time.sleep(0.03)
        logged = len(self.proxy.log())
        started = time.time()
        conns, last_answer = self._play(scenario)
        if conns is None:
            return {"downstream": [{"connect": "refused"}], "upstream": [], "access_log": []}
        downstream = [self._fate(conns[i], scenario["request"].get("fate_ms")) for i in sorted(conns)]
        for conn in conns.values():
            conn.close()
        time.sleep(0.02)
        lines = self._lines(logged, len(scenario["expected"]["access_log"]))
        records = self.upstream.snapshot()
        result = masked(scenario, downstream, records, lines)
        if scenario.get("timing"):
            elapsed = (last_answer - started) * 1000
            low, high = scenario["timing"]
            result["timing"] = "ok" if low <= elapsed <= high else f"{elapsed:.0f}ms outside {low}..{high}"
        if not self.proxy.alive():
            result["crashed"] = True
        return result

    def _play(self, scenario):
        """Plays the steps; the connections by number and when the last answer was complete. None: a connection was refused."""
        request = scenario["request"]
        conns, last_answer = {}, time.time()
        try:
            if request.get("autoconnect", True):
                conns[0] = Conn(scenario["listener"], request.get("tls"))
            for step in request["steps"]:
                number, do = step.get("c", 0), step["do"]
                if do == "open":
                    conns[number] = Conn(step.get("listener", scenario["listener"]), step.get("tls", request.get("tls")))
                elif do == "wait_upstream":
                    end = time.time() + step.get("ms", 3000) / 1000
                    while len(self.upstream.records) < step["n"] and time.time() < end:
                        time.sleep(0.005)
                elif do == "sleep":
                    time.sleep(step["ms"] / 1000)
                else:
                    play_step(conns[number], step)
                    if do in ("recv", "recv_raw", "wait"):
                        last_answer = time.time()
        except ConnectionRefusedError:
            return None, last_answer
        return conns, last_answer

    def _fate(self, conn, fate_ms):
        """What became of a connection, and everything that came back on it."""
        seen = {}
        if conn.closed_by_us:
            seen["fate"] = "closed_by_client"
        else:
            seen["fate"] = conn.fate(fate_ms if fate_ms is not None else 1500 if any(map(closes, conn.out)) else 180)
            if conn.h2 is None and conn.buf:
                seen["extra_len"] = len(conn.buf)
                seen["extra"] = conn.buf[:400].decode("latin-1")
        if conn.tls_error:
            seen["tls_error"] = conn.tls_error
        if conn.alpn:
            seen["alpn"] = conn.alpn
        if conn.h2 is None:
            seen["messages"] = conn.out
            return seen
        for stream in conn.h2out["streams"].values():
            stream["body_sha256"] = stream.pop("_h").hexdigest()
            body = stream.pop("_b")
            if len(body) <= 2500:
                stream["body"] = body.decode("latin-1")
        seen["h2"] = conn.h2out
        return seen

    def _lines(self, offset, want):
        """The new log lines, once `want` of them have come and nothing follows."""
        end = time.time() + 1.2
        last, since = None, time.time()
        while time.time() < end:
            now = self.proxy.log()[offset:]
            if now != last:
                last, since = now, time.time()
            if now.count("\n") >= want and time.time() - since > 0.04:
                break
            time.sleep(0.01)
        return [line for line in (last or "").split("\n") if line]


def closes(message):
    """Whether Envoy closes the connection after this message."""
    status = message.get("status")
    if status is None:
        return "raw_len" not in message
    asked = any(name.lower() == "connection" and "close" in value.lower() for name, value in message.get("headers") or [])
    return status in CLOSING or asked


def play_step(conn, step):
    """One step on one connection."""
    do, ms = step["do"], step.get("ms", 3000)
    if do == "send" or do == "h2_raw":
        conn.send(sdata(step))
    elif do == "fill":
        conn.send(step["byte"].encode() * step["count"])
    elif do == "recv":
        conn.recv_response(step.get("method", "GET"), ms / 1000, step.get("interim", False))
    elif do == "recv_raw":
        conn.recv_raw(step, ms)
    elif do == "half_close":
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
    elif do == "close":
        conn.close()
    elif do == "rst":
        conn.close(True)
    elif do == "h2_start":
        conn.h2_start(step.get("settings"))
    elif do == "headers":
        conn.h2_headers(step)
    elif do == "data":
        conn.h2_data(step, ms)
    elif do == "h2_rst":
        conn.h2_reset(step["sid"], step["code"])
    elif do == "ping":
        conn.h2.ping(b"12345678")
        conn.h2_flush()
    elif do == "wait":
        end = time.time() + ms / 1000
        while not conn.st(step["sid"])["ended"] and not conn.eof and time.time() < end:
            conn.h2_pump(end - time.time())
    elif do == "wait_ms":
        end = time.time() + ms / 1000
        while time.time() < end and not conn.eof:
            conn.h2_pump(end - time.time())
    else:
        raise ValueError(f"unknown step {do}")


def mask_fields(holder, literal):
    """Masks headers and trailers in place."""
    for field in ("headers", "trailers"):
        if holder.get(field):
            holder[field] = [[name, mask_header(name, value, literal)] for name, value in holder[field]]


def mask_body(holder, literal):
    """Masks a body in place, and its hash when that changed it."""
    if "body" in holder:
        body = mask_text(holder["body"], literal)
        if body != holder["body"]:
            holder["body"] = body
            holder["body_sha256"] = hashlib.sha256(body.encode("latin-1")).hexdigest()


def masked(scenario, downstream, records, lines):
    """The result with everything masked that differs from run to run (see README.md)."""
    literal = json.dumps(scenario["request"]["steps"]) + json.dumps(scenario.get("upstream", {}))
    for seen in downstream:
        for message in seen.get("messages", []):
            mask_fields(message, literal)
            mask_body(message, literal)
            if "raw" in message:
                raw = mask_text(message["raw"], literal)
                raw = re.sub(r"(?mi)^(date: )[^\r]*GMT", r"\1<DATE>", raw)
                raw = re.sub(r"(?mi)^(x-envoy-upstream-service-time: )\d+", r"\1<MS>", raw)
                if raw != message["raw"]:
                    message["raw"] = raw
                    message["raw_sha256"] = message["raw_len"] = "<MASKED>"
        for stream in seen.get("h2", {}).get("streams", {}).values():
            mask_body(stream, literal)
            mask_fields(stream, literal)
    for record in records:
        if "head" in record:
            if record["server"] in scenario.get("unordered_upstream", []):
                record["head"] = record["head"][:1] + sorted(record["head"][1:])
            record["head"] = [mask_text(line, literal) for line in record["head"]]
        if "headers" in record:
            record["headers"] = [[name, mask_header(name, value, literal)] for name, value in record["headers"]]
        if "raw_head" in record:
            record["raw_head"] = mask_text(record["raw_head"], literal)
    lines = [mask_log(line, literal) for line in lines]
    if scenario.get("mask_log_bytes"):
        lines = [re.sub(r'("\S*") \d+ \d+ <MS>', r"\1 <BYTES> <BYTES> <MS>", line) for line in lines]
    if scenario.get("alias_hosts"):
        lines = alias_hosts(records, lines)
    else:
        order = {name: i for i, name in enumerate(SERVERS)}
        records.sort(key=lambda record: order[record["server"]])
    return {"downstream": downstream, "upstream": records, "access_log": sorted(lines)}


def alias_hosts(records, lines):
    """Names equal hosts in the order of their first use: which of them comes first is random."""
    seen = list(dict.fromkeys(record["server"] for record in records))
    for i, name in enumerate(seen):
        lines = [line.replace(f"127.0.0.1:{SERVERS[name][0]}", f"<host{i}>") for line in lines]
    for record in records:
        record["server"] = f"host{seen.index(record['server'])}"
    return lines
