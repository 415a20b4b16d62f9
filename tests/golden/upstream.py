"""The scripted application behind the proxy: one server per name in `behaviours.json`.

Every request is answered by a *behaviour*, a list of small actions. A scenario hands each server a list of behaviours (one per
request, the last one repeats); without one, the server answers `ok`.
"""

import asyncio
import hashlib
import json
import os
import re
import socket
import ssl
import struct
import threading
import time

import h2.config
import h2.connection
import h2.events
import h2.settings

HERE = os.path.dirname(os.path.abspath(__file__))
CERTS = os.path.join(HERE, "certs")
with open(os.path.join(HERE, "behaviours.json")) as file:
    _DATA = json.load(file)
BEHAVIOURS = _DATA["behaviours"]
# name -> (port, kind, TLS certificate or None)
SERVERS = {name: (s["port"], s["kind"], s["tls_cert"]) for name, s in _DATA["servers"].items()}
BLACKHOLE_PORT = 29098  # accepts nothing: connect attempts time out
REFUSED_PORT = 29099  # nothing listens here


def latin(b):
    return b.decode("latin-1")


class Eof(Exception):
    pass


class Rd:
    """Buffered reader over asyncio streams."""

    def __init__(self, r):
        self.r, self.b, self.eof = r, b"", False

    async def more(self):
        try:
            d = await self.r.read(65536)
        except (ConnectionError, OSError):
            d = b""
            self.err = "rst"
        if not d:
            self.eof = True
            raise Eof()
        self.b += d

    async def until(self, sep, cap=4 << 20):
        while sep not in self.b:
            if len(self.b) > cap:
                raise Eof()
            await self.more()
        i = self.b.index(sep) + len(sep)
        out, self.b = self.b[:i], self.b[i:]
        return out

    async def exactly(self, n):
        while len(self.b) < n:
            await self.more()
        out, self.b = self.b[:n], self.b[n:]
        return out


class Upstream:
    def __init__(self):
        self.loop = None
        self.lock = threading.Lock()
        self.scripts, self.count, self.records, self.conns, self.conn_n = {}, {}, [], set(), {}
        self.generation = 0
        self.active = 0
        self.bh = []

    # ---------- control (called from the runner thread)
    def start(self):
        self.loop = asyncio.new_event_loop()
        ev = threading.Event()

        def run():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(self._serve())
            ev.set()
            self.loop.run_forever()

        threading.Thread(target=run, daemon=True).start()
        if not ev.wait(10):
            raise RuntimeError("upstream did not start")
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", BLACKHOLE_PORT))
        s.listen(0)
        self.bh.append(s)
        for _ in range(3):
            c = socket.socket()
            c.setblocking(False)
            try:
                c.connect(("127.0.0.1", BLACKHOLE_PORT))
            except BlockingIOError:
                pass
            self.bh.append(c)

    def reset(self, scripts=None):
        f = asyncio.run_coroutine_threadsafe(self._reset(scripts or {}), self.loop)
        f.result(5)

    async def _reset(self, scripts):
        self.generation += 1
        live = list(self.conns)
        for w in live:
            try:
                w.close()
            except Exception:
                pass
        for _ in range(40):
            if not self.conns:
                break
            await asyncio.sleep(0.005)
        for w in list(self.conns):
            try:
                w.transport.abort()
            except Exception:
                pass
        self.conns.clear()
        await asyncio.sleep(0.01)
        self.scripts, self.count, self.records, self.conn_n = scripts, {}, [], {}

    def snapshot(self):
        return json.loads(json.dumps([{k: v for k, v in r.items() if not k.startswith("_")} for r in self.records]))

    # ---------- serving
    async def _serve(self):
        for name, (port, kind, cert) in SERVERS.items():
            ctx = None
            if cert:
                ctx = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                ctx.load_cert_chain(f"{CERTS}/{cert}.pem", f"{CERTS}/{cert}.key")
                ctx.load_verify_locations(f"{CERTS}/root.pem")
                ctx.verify_mode = ssl.CERT_REQUIRED
                ctx.set_alpn_protocols(["h2"] if kind == "h2" else ["istio", "http/1.1"])
                ctx.sni_callback = lambda s, n, c, nm=name: self.sni.__setitem__(nm, n)
            await asyncio.start_server(
                lambda r, w, n=name, k=kind: self._conn(n, k, r, w), "127.0.0.1", port, ssl=ctx, backlog=64
            )

    sni = {}

    async def _conn(self, name, kind, r, w):
        gen = self.generation
        self.conns.add(w)
        sock = w.get_extra_info("socket")
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except Exception:
            pass
        self.conn_n[name] = self.conn_n.get(name, 0) + 1
        n = self.conn_n[name]
        try:
            if kind == "h1":
                await self._h1(name, n, Rd(r), w, gen)
            elif kind == "h2":
                await H2Server(self, name, n, r, w, gen).run()
            else:
                await self._tcp(name, n, Rd(r), w, gen)
        except (Eof, ConnectionError, OSError, asyncio.CancelledError):
            pass
        except Exception as e:
            print("upstream error", name, repr(e), file=sys.stderr)
        finally:
            self.conns.discard(w)
            try:
                w.close()
            except Exception:
                pass

    def pick(self, name, default, hdr=None):
        sc = self.scripts.get(name)
        if sc is not None:
            i = self.count.get(name, 0)
            self.count[name] = i + 1
            b = sc[min(i, len(sc) - 1)]
        else:
            b = hdr or default
        return BEHAVIOURS[b] if isinstance(b, str) else b

    def rec(self, gen, d):
        if gen == self.generation:
            self.records.append(d)
        return d

    async def _tcp(self, name, n, rd, w, gen):
        rec = self.rec(gen, {"server": name, "conn": n, "kind": "tcp"})
        if w.get_extra_info("ssl_object"):
            rec["tls"] = self._tlsinfo(name, w)
        acts = self.pick(name, "tcp_echo")
        st = {"rx": hashlib.sha256(), "n": 0, "head": b""}
        try:
            await self._acts(acts, rd, w, rec, st, None)
        finally:
            pass

    def _tlsinfo(self, name, w):
        o = w.get_extra_info("ssl_object")
        pc = o.getpeercert() or {}
        return {
            "sni": self.sni.get(name),
            "alpn": o.selected_alpn_protocol(),
            "peer_san": [list(x) for x in pc.get("subjectAltName", ())],
        }

    def _note(self, rec, st, data):
        st["rx"].update(data)
        st["n"] += len(data)
        if len(st["head"]) < 300:
            st["head"] = (st["head"] + data)[:300]
        rec["raw_len"], rec["raw_sha256"], rec["raw_head"] = st["n"], st["rx"].hexdigest(), latin(st["head"])

    async def _h1(self, name, n, rd, w, gen):
        while True:
            head = await rd.until(b"\r\n\r\n")
            lines = latin(head[:-4]).split("\r\n")
            rec = self.rec(gen, {"server": name, "conn": n, "kind": "h1", "head": lines})
            if w.get_extra_info("ssl_object"):
                rec["tls"] = self._tlsinfo(name, w)
            hs = [l.split(":", 1) for l in lines[1:] if ":" in l]
            get = lambda k: [v.strip() for a, v in hs if a.strip().lower() == k]
            te, cl = get("transfer-encoding"), get("content-length")
            up = get("x-up")
            hdr = up[0] if up and up[0] in BEHAVIOURS else None
            m = re.match(r"^\S+ (?:https?://[^/]*)?/up/([\w]+)", lines[0])
            if not hdr and m and m.group(1) in BEHAVIOURS:
                hdr = m.group(1)
            acts = self.pick(name, "ok", hdr)
            rec["_te"] = bool(te)
            rec["_cl"] = int(cl[0]) if cl and cl[0].isdigit() else 0
            rec["framing"] = "chunked" if te else ("content-length" if cl else "none")
            st = {"rx": hashlib.sha256(), "n": 0, "head": b""}
            closed = await self._acts(acts, rd, w, rec, st, head)
            if closed:
                return
            # drain what was not read, so that keep-alive stays in step
            if "body_len" not in rec:
                await self._body(rd, rec)

    async def _body(self, rd, rec):
        h, total, first = hashlib.sha256(), 0, b""
        rec["body_complete"] = False

        def add(d):
            nonlocal total, first
            h.update(d)
            total += len(d)
            if len(first) < 200:
                first = (first + d)[:200]
            rec["body_len"], rec["body_sha256"] = total, h.hexdigest()
            if total <= 200:
                rec["body"] = latin(first)
            else:
                rec.pop("body", None)

        add(b"")
        try:
            if rec["_te"]:
                while True:
                    sz = int((await rd.until(b"\r\n")).split(b";")[0].strip() or b"0", 16)
                    if sz == 0:
                        break
                    left = sz
                    while left:
                        if not rd.b:
                            await rd.more()
                        d, rd.b = rd.b[:left], rd.b[left:]
                        left -= len(d)
                        add(d)
                    await rd.exactly(2)
                tr = []
                while True:
                    l = await rd.until(b"\r\n")
                    if l == b"\r\n":
                        break
                    tr.append(latin(l[:-2]))
                if tr:
                    rec["trailers"] = tr
            else:
                left = rec["_cl"]
                while left:
                    if not rd.b:
                        await rd.more()
                    d, rd.b = rd.b[:left], rd.b[left:]
                    left -= len(d)
                    add(d)
            rec["body_complete"] = True
        except Eof:
            rec["body_abort"] = True
            raise

    async def _acts(self, acts, rd, w, rec, st, head):
        for a in acts:
            do = a["do"]
            if do == "body":
                await self._body(rd, rec)
            elif do == "send":
                w.write(a["text"].encode("latin-1"))
                await w.drain()
            elif do == "fill":
                left = a["count"]
                blk = a["byte"].encode() * 65536
                while left:
                    k = min(left, 65536)
                    w.write(blk[:k])
                    left -= k
                    await w.drain()
            elif do == "sleep":
                await asyncio.sleep(a["ms"] / 1000)
            elif do == "echo_head":
                w.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(head) + head)
                await w.drain()
            elif do == "readsome":
                if not rd.b:
                    await rd.more()
                self._note(rec, st, rd.b)
                rd.b = b""
            elif do == "read_eof":
                try:
                    while True:
                        if rd.b:
                            self._note(rec, st, rd.b)
                            rd.b = b""
                        await rd.more()
                except Eof:
                    rec["saw_eof"] = True
            elif do == "tunnel_echo":
                try:
                    while True:
                        if rd.b:
                            self._note(rec, st, rd.b)
                            w.write(rd.b)
                            rd.b = b""
                            await w.drain()
                        await rd.more()
                except Eof:
                    rec["saw_eof"] = True
                return True
            elif do == "hang":
                try:
                    while True:
                        await rd.more()
                except Eof:
                    rec["peer_closed"] = True
                return True
            elif do == "shut_wr":
                w.write_eof()
            elif do == "close":
                w.close()
                return True
            elif do == "rst":
                s = w.get_extra_info("socket")
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                w.transport.abort()
                return True
        return False


class H2Server:
    def __init__(self, up, name, n, r, w, gen):
        self.up, self.name, self.n, self.r, self.w, self.gen = up, name, n, r, w, gen
        self.c = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False,
                header_encoding="latin-1",
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.streams = {}

    def flush(self):
        d = self.c.data_to_send()
        if d:
            self.w.write(d)

    async def run(self):
        self.c.initiate_connection()
        self.flush()
        tls = self.up._tlsinfo(self.name, self.w) if self.w.get_extra_info("ssl_object") else None
        while True:
            d = await self.r.read(65536)
            if not d:
                break
            try:
                evs = self.c.receive_data(d)
            except Exception:
                self.flush()
                break
            for e in evs:
                if isinstance(e, h2.events.RequestReceived):
                    rec = self.up.rec(
                        self.gen,
                        {
                            "server": self.name,
                            "conn": self.n,
                            "kind": "h2",
                            "headers": [list(x) for x in e.headers],
                            "body_len": 0,
                        },
                    )
                    if tls:
                        rec["tls"] = tls
                    s = {"rec": rec, "end": asyncio.Event(), "h": hashlib.sha256()}
                    self.streams[e.stream_id] = s
                    hd = dict(e.headers).get("x-up")
                    s["task"] = asyncio.ensure_future(
                        self.serve(e.stream_id, s, self.up.pick(self.name, "h2_ok", hd if hd in BEHAVIOURS else None))
                    )
                elif isinstance(e, h2.events.DataReceived):
                    s = self.streams.get(e.stream_id)
                    if s:
                        s["h"].update(e.data)
                        s["rec"]["body_len"] += len(e.data)
                        s["rec"]["body_sha256"] = s["h"].hexdigest()
                    self.c.acknowledge_received_data(e.flow_controlled_length, e.stream_id)
                elif isinstance(e, h2.events.TrailersReceived):
                    s = self.streams.get(e.stream_id)
                    if s:
                        s["rec"]["trailers"] = [list(x) for x in e.headers]
                elif isinstance(e, h2.events.StreamEnded):
                    s = self.streams.get(e.stream_id)
                    if s:
                        s["rec"]["body_complete"] = True
                        s["end"].set()
                elif isinstance(e, h2.events.StreamReset):
                    s = self.streams.get(e.stream_id)
                    if s and e.remote_reset:
                        s["rec"]["reset_code"] = int(e.error_code)
                        s["end"].set()
            self.flush()
            await self.w.drain()

    async def send(self, sid, data, end):
        while data:
            k = min(len(data), self.c.local_flow_control_window(sid), self.c.max_outbound_frame_size)
            if k <= 0:
                await asyncio.sleep(0.002)
                continue
            self.c.send_data(sid, data[:k], end_stream=(end and k == len(data)))
            data = data[k:]
            self.flush()

    async def serve(self, sid, s, acts):
        try:
            for a in acts:
                do = a["do"]
                if do == "end":
                    await s["end"].wait()
                elif do == "headers":
                    self.c.send_headers(sid, [tuple(x) for x in a["headers"]], end_stream=a.get("end", False))
                elif do == "data":
                    await self.send(sid, a["text"].encode("latin-1"), a.get("end", False))
                elif do == "fill":
                    await self.send(sid, a["byte"].encode() * a["count"], a.get("end", False))
                elif do == "trailers":
                    self.c.send_headers(sid, [tuple(x) for x in a["headers"]], end_stream=True)
                elif do == "rst_stream":
                    self.c.reset_stream(sid, a["code"])
                elif do == "goaway":
                    # graceful notice: keeps serving the stream that is already open
                    import hyperframe.frame as hf

                    f = hf.GoAwayFrame(0, last_stream_id=sid, error_code=a["code"])
                    self.w.write(f.serialize())
                elif do == "sleep":
                    await asyncio.sleep(a["ms"] / 1000)
                elif do == "hang":
                    return
                elif do == "close":
                    self.flush()
                    self.w.close()
                    return
                self.flush()
        except Exception as e:
            s["rec"]["serve_error"] = type(e).__name__
