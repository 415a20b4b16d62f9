"""The caller: one connection that plays a scenario's steps and notes what came back."""

import base64
import hashlib
import json
import os
import re
import select
import socket
import ssl
import struct
import time

import h2.config
import h2.connection
import h2.events

HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(HERE, "configs", "listeners.json")) as file:
    LISTENERS = json.load(file)


class Conn:
    def __init__(self, listener, tls=None, src=None):
        l = LISTENERS[listener]
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buf, self.eof, self.err, self.out, self.raw = b"", False, None, [], None
        self.tls_error = self.alpn = None
        self.closed_by_us = False
        self.h2 = None
        self.h2out = None
        self.t0 = time.time()
        self.close_at = None
        self.sock.settimeout(3)
        self.sock.connect((l["address"], l["port"]))
        if tls is not None:
            ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            ctx.check_hostname = False
            ctx.verify_mode = ssl.CERT_NONE
            if tls.get("cert"):
                ctx.load_cert_chain(f"{HERE}/certs/{tls['cert']}.pem", f"{HERE}/certs/{tls['cert']}.key")
            if tls.get("alpn"):
                ctx.set_alpn_protocols(tls["alpn"])
            v = {"1.1": ssl.TLSVersion.TLSv1_1, "1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
            if tls.get("max"):
                ctx.minimum_version = v["1.1"]
                ctx.maximum_version = v[tls["max"]]
                ctx.set_ciphers(tls.get("ciphers", "ALL:@SECLEVEL=0"))
            try:
                self.sock = ctx.wrap_socket(self.sock, server_hostname=tls.get("sni"))
                self.alpn = self.sock.selected_alpn_protocol()
            except (ssl.SSLError, OSError) as e:
                self._tlsfail(e)

    def _tlsfail(self, e):
        r = getattr(e, "reason", None)
        self.tls_error = r if isinstance(e, ssl.SSLError) and r else "connection_closed"
        self.eof = True
        self.err = "tls"
        self.close_at = self.close_at or time.time()

    def fill(self, timeout):
        """Reads once; returns False at timeout or end."""
        if self.eof:
            return False
        try:
            self.sock.settimeout(max(timeout, 0.001))
            d = self.sock.recv(262144)
            if not d:
                self.eof = True
                self.err = "fin"
                self.close_at = time.time()
                return False
            self.buf += d
            return True
        except (socket.timeout, ssl.SSLWantReadError):
            return False
        except ssl.SSLError as e:
            if "timed out" in str(e):
                return False
            if "EOF" in str(e):
                self.eof = True
                self.err = "rst"
                self.close_at = time.time()
                return False
            self._tlsfail(e)
            return False
        except OSError:
            self.eof = True
            self.err = "rst"
            self.close_at = time.time()
            return False

    def send(self, data):
        if self.eof and self.err in ("rst", "tls"):
            return
        try:
            self.sock.settimeout(5)
            view = memoryview(data)
            while view:
                # keep reading while sending, so that an early answer cannot dead-lock us
                r, w, _ = select.select([self.sock] if not self.eof else [], [self.sock], [], 3)
                if r and not self.fill(0.001) and self.eof and self.err == "rst":
                    return
                if not w and not r:
                    return
                if w:
                    n = self.sock.send(view[:65536])
                    view = view[n:]
        except (OSError, ssl.SSLError) as e:
            pass

    def need(self, cond, timeout):
        end = time.time() + timeout
        while not cond():
            left = end - time.time()
            if left <= 0 or (not self.fill(left) and self.eof):
                return cond()
        return True

    def recv_response(self, method, timeout, interim=False):
        """Parses one message from the wire (1xx messages are returned as separate entries)."""
        r = {"status": None}
        end = time.time() + timeout
        left = lambda: max(0.01, end - time.time())
        if not self.need(lambda: b"\r\n\r\n" in self.buf, left()):
            r["incomplete"] = "closed" if self.eof else "timeout"
            r["partial"] = self.buf[:400].decode("latin-1")
            self.buf = b""
            self.out.append(r)
            return r
        i = self.buf.index(b"\r\n\r\n")
        head = self.buf[:i].decode("latin-1")
        self.buf = self.buf[i + 4 :]
        lines = head.split("\r\n")
        p = lines[0].split(" ", 2)
        r["status_line"] = lines[0]
        try:
            r["status"] = int(p[1])
        except Exception:
            r["status"] = None
        hs = [[a, b.strip()] for a, _, b in (l.partition(":") for l in lines[1:])]
        r["headers"] = hs
        get = lambda k: [v for a, v in hs if a.lower() == k]
        body, tr, s = b"", None, r["status"] or 0
        if 100 <= s < 200 and s != 101:
            self.out.append(r)
            return r if interim else self.recv_response(method, left())
        if s == 101:
            r["framing"] = "upgrade"
            self.out.append(r)
            return r
        if method == "CONNECT" and s == 200 and not get("transfer-encoding") and not get("content-length"):
            r["framing"] = "tunnel"
            self.out.append(r)
            return r
        if method == "HEAD" or s in (204, 304):
            r["framing"] = "none"
        elif get("transfer-encoding"):
            r["framing"] = "chunked"
            ok = True
            while True:
                if not self.need(lambda: b"\r\n" in self.buf, left()):
                    ok = False
                    break
                j = self.buf.index(b"\r\n")
                try:
                    n = int(self.buf[:j].split(b";")[0] or b"x", 16)
                except ValueError:
                    r["bad_chunk"] = True
                    ok = False
                    break
                if n == 0:
                    self.buf = self.buf[j + 2 :]
                    tr = []
                    while True:
                        if not self.need(lambda: b"\r\n" in self.buf, left()):
                            ok = False
                            break
                        j = self.buf.index(b"\r\n")
                        l = self.buf[:j].decode("latin-1")
                        self.buf = self.buf[j + 2 :]
                        if not l:
                            break
                        a, _, b = l.partition(":")
                        tr.append([a, b.strip()])
                    break
                self.need(lambda: len(self.buf) >= j + 2 + n + 2, left())
                if len(self.buf) < j + 2 + n + 2:
                    body += self.buf[j + 2 : j + 2 + n]
                    self.buf = b""
                    ok = False
                    break
                body += self.buf[j + 2 : j + 2 + n]
                self.buf = self.buf[j + 4 + n :]
            if not ok:
                r["incomplete"] = "closed" if self.eof else "timeout"
        elif get("content-length"):
            r["framing"] = "content-length"
            n = int(get("content-length")[0]) if get("content-length")[0].isdigit() else 0
            self.need(lambda: len(self.buf) >= n, left())
            body, self.buf = self.buf[:n], self.buf[n:]
            if len(body) < n:
                r["incomplete"] = "closed" if self.eof else "timeout"
        else:
            r["framing"] = "close"
            self.need(lambda: False, left())
            body, self.buf = self.buf, b""
            if not self.eof:
                r["incomplete"] = "timeout"
        r["body_len"], r["body_sha256"] = len(body), hashlib.sha256(body).hexdigest()
        if len(body) <= 2500:
            r["body"] = body.decode("latin-1")
        if tr:
            r["trailers"] = tr
        self.out.append(r)
        return r

    # ---------------------------------------------------------------- HTTP/2 client
    def h2_start(self, settings=None):
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding="latin-1",
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.h2out = {"streams": {}, "goaway": None}
        if settings:
            self.h2.local_settings.update({int(k): v for k, v in settings.items()})
        self.h2.initiate_connection()
        self.h2_flush()

    def h2_flush(self):
        d = self.h2.data_to_send()
        if d:
            self.send(d)

    def st(self, sid):
        return self.h2out["streams"].setdefault(
            str(sid), {"status": None, "headers": None, "body_len": 0, "_h": hashlib.sha256(), "_b": b"", "ended": False}
        )

    def h2_pump(self, timeout):
        if len(self.buf) < 9 and not self.fill(timeout):
            return False
        # whole frames only; GOAWAY is noted here and withheld from the library, which would refuse everything after it
        d = b""
        while len(self.buf) >= 9:
            n = int.from_bytes(self.buf[:3], "big") + 9
            if len(self.buf) < n:
                break
            fr, self.buf = self.buf[:n], self.buf[n:]
            if fr[3] == 7:
                self.h2out["goaway"] = int.from_bytes(fr[13:17], "big")
            else:
                d += fr
        if not d:
            if self.buf:
                return self.fill(timeout)
            return True
        try:
            evs = self.h2.receive_data(d)
        except Exception as e:
            self.h2out["client_error"] = type(e).__name__
            return True
        for e in evs:
            n = type(e).__name__
            sid = getattr(e, "stream_id", None)
            if n == "InformationalResponseReceived":
                self.st(sid).setdefault("informational", []).append([list(x) for x in e.headers])
            elif n == "ResponseReceived":
                s = self.st(sid)
                s["headers"] = [list(x) for x in e.headers]
                s["status"] = int(dict(e.headers).get(":status", 0))
            elif n == "DataReceived":
                s = self.st(sid)
                s["_h"].update(e.data)
                s["body_len"] += len(e.data)
                s["_b"] = (s["_b"] + e.data)[:2501]
                if e.flow_controlled_length:
                    try:
                        self.h2.acknowledge_received_data(e.flow_controlled_length, sid)
                    except Exception:
                        pass
            elif n == "TrailersReceived":
                self.st(sid)["trailers"] = [list(x) for x in e.headers]
            elif n == "StreamEnded":
                self.st(sid)["ended"] = True
            elif n == "StreamReset":
                self.st(sid)["reset"] = int(e.error_code)
                self.st(sid)["ended"] = True
            elif n == "ConnectionTerminated":
                self.h2out["goaway"] = int(e.error_code)
            elif n == "PingAckReceived":
                self.h2out["ping_acks"] = self.h2out.get("ping_acks", 0) + 1
        self.h2_flush()
        return True

    def h2_headers(self, step):
        """Sends a header block; with `hold` it goes out in one write with the next step."""
        try:
            self.h2.send_headers(step["sid"], [tuple(x) for x in step["headers"]], end_stream=step.get("end", False))
            self.st(step["sid"])
        except Exception as e:
            self.h2out["client_error"] = type(e).__name__
        if not step.get("hold"):
            self.h2_flush()

    def h2_data(self, step, ms):
        """Sends DATA as the windows allow; gives up when the stream ends first."""
        sid, last = step["sid"], step.get("end", False)
        data = step["byte"].encode() * step["count"] if "byte" in step else step["text"].encode("latin-1")
        end = time.time() + ms / 1000
        while True:
            try:
                n = min(len(data), self.h2.local_flow_control_window(sid), self.h2.max_outbound_frame_size)
                if data and n <= 0:
                    if time.time() > end or self.eof or self.st(sid)["ended"]:
                        return
                    self.h2_pump(0.05)
                    continue
                self.h2.send_data(sid, data[:n], end_stream=last and n == len(data))
                data = data[n:]
                if data or not step.get("hold"):
                    self.h2_flush()
            except Exception:
                return
            if not data:
                return

    def h2_reset(self, sid, code):
        try:
            self.h2.reset_stream(sid, code)
            self.h2_flush()
        except Exception:
            pass

    def recv_raw(self, step, ms):
        """Notes bytes as they came: `n` of them, up to `until`, or all until the time is over."""
        if "n" in step:
            self.need(lambda: len(self.buf) >= step["n"], ms / 1000)
            n = step["n"]
        else:
            until = step["until"].encode("latin-1") if "until" in step else None
            self.need(lambda: until is not None and until in self.buf, ms / 1000)
            n = len(self.buf)
        data, self.buf = self.buf[:n], self.buf[n:]
        seen = {"raw_len": len(data), "raw_sha256": hashlib.sha256(data).hexdigest()}
        seen["eof"] = self.eof if "n" not in step and "until" not in step else None
        if len(data) <= 400:
            seen["raw"] = data.decode("latin-1")
        self.out.append(seen)

    def fate(self, ms):
        end = time.time() + ms / 1000
        while not self.eof and time.time() < end:
            if self.h2:
                self.h2_pump(end - time.time())
            else:
                self.fill(end - time.time())
        return "closed" if self.eof else "open"

    def close(self, rst=False):
        self.closed_by_us = True
        try:
            if rst:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.sock.close()
        except OSError:
            pass


def sdata(s):
    if "b64" in s:
        return base64.b64decode(s["b64"])
    return s["text"].encode("latin-1")
