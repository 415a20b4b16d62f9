use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use metrics::Counter;
use metrics::atomics::AtomicU64;

use super::{AccessLogError, AccessLogs, LogOptions, LogWriter};
use crate::config::{AccessLog, AccessLogFilter, AccessLogSink, LogFormat};
use crate::flags::ResponseFlags;
use crate::stream_info::{ConnectionInfo, FormatContext, StreamInfo};

const SOON: Duration = Duration::from_secs(10);

fn info() -> StreamInfo {
    let address = "127.0.0.1:1".parse().unwrap();
    StreamInfo::new(Rc::new(ConnectionInfo::new(0, address, address)))
}

fn context(info: &StreamInfo) -> FormatContext<'_> {
    FormatContext { info, request: None, response: None, trailers: None, now: info.start }
}

fn no_collector(_: &crate::config::OtelLog) -> Arc<crate::telemetry::export::Exporter> {
    panic!("nothing is exported here")
}

fn log_to(path: &Path, format: &str, filter: Option<AccessLogFilter>) -> AccessLog {
    AccessLog { filter, format: LogFormat::Text(format.to_owned()), sink: AccessLogSink::File(path.to_owned()) }
}

fn writer(options: LogOptions) -> (LogWriter, Arc<AtomicU64>) {
    let dropped = Arc::new(AtomicU64::new(0));
    (LogWriter::start(options, Counter::from_arc(Arc::clone(&dropped))).unwrap(), dropped)
}

/// Every filter for itself, without a line being written.
#[test]
fn each_filter_asks_what_its_name_says() {
    use super::filter::Filter;
    use crate::config::{Fraction, HeaderMatch, HeaderMatcher};
    use crate::http::head::{RequestHead, Version};

    let mut info = info();
    info.response_code = 404;
    info.protocol = Some(Version::Http11);
    let mut head = RequestHead::new();
    head.headers.push(b"x-log", b"1");
    let request = FormatContext { request: Some(&head), now: info.start + Duration::from_millis(20), ..context(&info) };
    let connection = StreamInfo { protocol: None, response_code: 0, ..self::info() };
    let tcp = context(&connection);
    let header = |name: &str| {
        let value = HeaderMatch::Present(true);
        AccessLogFilter::Header(HeaderMatcher { name: name.into(), value, invert: false, treat_missing_as_empty: false })
    };
    // Without a gRPC status of its own a request counts by its HTTP status: 404 is UNIMPLEMENTED.
    let grpc = |statuses: &[u32], exclude| AccessLogFilter::GrpcStatus { statuses: statuses.to_vec(), exclude };
    for (filter, of_request, of_tcp) in [
        (AccessLogFilter::StatusNot(404), false, true),
        (AccessLogFilter::DurationEquals(20), true, false),
        (AccessLogFilter::DurationAtMost(19), false, true),
        (AccessLogFilter::DurationNot(20), false, true),
        (AccessLogFilter::Share(Fraction::ALL), true, true),
        (AccessLogFilter::Share(Fraction::NONE), false, false),
        (header("x-log"), true, false),
        (header("x-none"), false, false),
        (grpc(&[12], false), true, false),
        (grpc(&[12], true), false, true),
        (AccessLogFilter::Http(true), true, false),
        (AccessLogFilter::Http(false), false, true),
        (AccessLogFilter::And(Vec::new()), true, true),
        (AccessLogFilter::Or(Vec::new()), false, false),
    ] {
        let compiled = Filter::compile(&filter).unwrap();
        assert_eq!((compiled.matches(&request), compiled.matches(&tcp)), (of_request, of_tcp), "{filter:?}");
    }
}

/// A pipe as a log file: nothing is written on while nobody reads.
fn pipe() -> (std::io::PipeReader, std::io::PipeWriter, PathBuf) {
    let (reader, end) = std::io::pipe().unwrap();
    let path = format!("/proc/self/fd/{}", end.as_raw_fd()).into();
    (reader, end, path)
}

#[test]
fn filters_choose_the_streams() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let (writer, _) = writer(LogOptions::default());
    let flags = |names: &[&str]| AccessLogFilter::ResponseFlags(names.iter().map(|name| (*name).to_owned()).collect());
    let logs = AccessLogs::compile(
        &[
            log_to(&path, "all %RESPONSE_CODE%\n", None),
            log_to(&path, "nr\n", Some(flags(&["NR", "UH"]))),
            log_to(&path, "any flag\n", Some(flags(&[]))),
            log_to(
                &path,
                "slow error\n",
                Some(AccessLogFilter::And(vec![AccessLogFilter::StatusAtLeast(500), AccessLogFilter::DurationAtLeast(20)])),
            ),
            log_to(
                &path,
                "0 or 404\n",
                Some(AccessLogFilter::Or(vec![AccessLogFilter::StatusAtMost(0), AccessLogFilter::StatusEquals(404)])),
            ),
            log_to(&path, "not health\n", Some(AccessLogFilter::NotHealthCheck)),
        ],
        &writer,
        &no_collector,
    )
    .unwrap();
    let mut stream = info();
    for (code, flags, milliseconds) in
        [(404, ResponseFlags::NO_ROUTE_FOUND, 0), (503, ResponseFlags::UPSTREAM_OVERFLOW, 20), (200, ResponseFlags::NONE, 19)]
    {
        stream.response_code = code;
        stream.flags = flags;
        logs.log(&FormatContext { now: stream.start + Duration::from_millis(milliseconds), ..context(&stream) });
    }
    assert!(writer.flush(SOON));
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "all 404\nnr\nany flag\n0 or 404\nnot health\nall 503\nany flag\nslow error\nnot health\nall 200\nnot health\n"
    );
}

#[test]
fn what_cannot_be_compiled_is_refused() {
    let (writer, _) = writer(LogOptions::default());
    let refuse = |log: AccessLog| AccessLogs::compile(&[log], &writer, &no_collector).unwrap_err();
    let path = Path::new("/nonexistent/skiff.log");
    assert!(matches!(refuse(log_to(path, "%NOPE%", None)), AccessLogError::Format(_)));
    let filter = AccessLogFilter::Or(vec![AccessLogFilter::ResponseFlags(vec!["XX".to_owned()])]);
    assert_eq!(refuse(log_to(path, "", Some(filter))).to_string(), "access log filter: unknown response flag \"XX\"");
    assert!(matches!(refuse(log_to(path, "", None)), AccessLogError::Open { .. }));
    assert!(AccessLogs::default().is_empty());
}

#[test]
fn a_lone_line_is_written_without_a_flush() {
    let (mut reader, _end, path) = pipe();
    let (writer, _) = writer(LogOptions::default());
    let logs = AccessLogs::compile(&[log_to(&path, "line\n", None)], &writer, &no_collector).unwrap();
    for _ in 0..3 {
        logs.log(&context(&info()));
        let mut line = [0; 5];
        reader.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"line\n");
    }
}

#[test]
fn blocked_sink_drops_and_counts_and_blocks_nobody() {
    let (mut reader, end, path) = pipe();
    let options = LogOptions { max_lines: 100, max_bytes: 1 << 20 };
    let (writer, dropped) = writer(options);
    let long = format!("{}\n", "x".repeat(1023));
    let logs = AccessLogs::compile(&[log_to(&path, &long, None)], &writer, &no_collector).unwrap();
    let total = 1000;
    let stream = info();
    for _ in 0..total {
        logs.log(&context(&stream));
    }
    assert!(!writer.flush(Duration::from_millis(20)), "the pipe is full");
    let lost = dropped.load(Ordering::SeqCst);
    // A pipe holds 64 KiB, the writer one batch, the queue 100 lines.
    assert!(lost >= total - 64 - 2 * 100 && lost < total, "{lost}");

    drop(end);
    let reading = thread::spawn(move || {
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        all
    });
    assert!(writer.flush(SOON));
    drop((logs, writer));
    let all = reading.join().unwrap();
    assert!(all.lines().all(|line| line.len() == 1023), "no line is torn");
    assert_eq!(all.lines().count() as u64 + dropped.load(Ordering::SeqCst), total);
}

#[test]
fn bytes_are_bounded_too() {
    let (_reader, _end, path) = pipe();
    let (writer, dropped) = writer(LogOptions { max_lines: 1000, max_bytes: 100 });
    let logs = AccessLogs::compile(&[log_to(&path, &"y".repeat(101), None)], &writer, &no_collector).unwrap();
    logs.log(&context(&info()));
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

#[test]
fn lines_of_many_threads_are_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let (writer, dropped) = writer(LogOptions { max_lines: 1_000_000, max_bytes: 1 << 28 });
    let logs = AccessLogs::compile(
        &[log_to(&path, "%CONNECTION_ID% %BYTES_SENT% abcdefghijklmnopqrstuvwxyz end\n", None)],
        &writer,
        &no_collector,
    )
    .unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut stream = info();
                for number in 0..5000 {
                    stream.bytes_sent = number;
                    logs.log(&context(&stream));
                }
            });
        }
    });
    assert!(writer.flush(SOON));
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 20_000);
    let mut numbers = vec![0; 5000];
    for line in text.lines() {
        let number = line.strip_prefix("0 ").and_then(|line| line.strip_suffix(" abcdefghijklmnopqrstuvwxyz end")).unwrap();
        numbers[number.parse::<usize>().unwrap()] += 1;
    }
    assert!(numbers.iter().all(|count| *count == 4));
}

#[test]
fn rotation_opens_the_file_again() {
    let directory = tempfile::tempdir().unwrap();
    let (path, rotated) = (directory.path().join("log"), directory.path().join("log.1"));
    let (writer, _) = writer(LogOptions::default());
    let logs = AccessLogs::compile(&[log_to(&path, "%BYTES_SENT%\n", None)], &writer, &no_collector).unwrap();
    let mut stream = info();
    logs.log(&context(&stream));
    assert!(writer.flush(SOON));
    fs::rename(&path, &rotated).unwrap();
    writer.reopen();
    stream.bytes_sent = 1;
    logs.log(&context(&stream));
    assert!(writer.flush(SOON));
    assert_eq!(fs::read_to_string(&rotated).unwrap(), "0\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
}

#[test]
fn one_file_has_one_queue_and_is_closed_after_its_last_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let (writer, _) = writer(LogOptions::default());
    let open_files = || {
        let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        links.filter(|target| *target == path).count()
    };
    let first = AccessLogs::compile(&[log_to(&path, "1\n", None), log_to(&path, "2\n", None)], &writer, &no_collector).unwrap();
    let second = AccessLogs::compile(&[log_to(&path, "3\n", None)], &writer, &no_collector).unwrap();
    assert_eq!(open_files(), 1);
    first.log(&context(&info()));
    second.log(&context(&info()));
    drop((first, second));
    assert!(writer.flush(SOON));
    assert_eq!(fs::read_to_string(&path).unwrap(), "1\n2\n3\n");
    assert!(writer.flush(SOON));
    assert_eq!(open_files(), 0);
}

#[test]
fn dropping_the_writer_writes_what_is_queued() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let (writer, _) = writer(LogOptions::default());
    let logs = AccessLogs::compile(&[log_to(&path, "last words\n", None)], &writer, &no_collector).unwrap();
    logs.log(&context(&info()));
    drop(writer);
    assert_eq!(fs::read_to_string(&path).unwrap(), "last words\n");
    // Logging afterwards is harmless.
    logs.log(&context(&info()));
}

#[test]
fn failed_writes_are_counted_by_the_line() {
    let (writer, dropped) = writer(LogOptions::default());
    let logs = AccessLogs::compile(&[log_to(Path::new("/dev/full"), "a\nb\n", None)], &writer, &no_collector).unwrap();
    logs.log(&context(&info()));
    assert!(writer.flush(SOON));
    assert_eq!(dropped.load(Ordering::SeqCst), 2);
}
