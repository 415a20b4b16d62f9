//! `skiff quickstart --check`: sends the requests of the scenarios and compares answers, log lines and identities.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use tokio::time::Instant;

use super::Mesh;
use super::bookinfo::{DETAILS, Member, RATINGS};
use super::scenarios::{Before, Call, Expect, SCENARIOS, Scenario};
use crate::client::{self, ClientError};

/// Of one request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// From an answer to its line in the access log.
const LOG_DEADLINE: Duration = Duration::from_secs(3);
/// A log that is written by another thread has to be looked at again.
const LOG_INTERVAL: Duration = Duration::from_millis(10);

/// How many scenarios there were and failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) total: usize,
    pub(super) failed: usize,
}

/// Runs all scenarios in their order and reports each on `out`.
pub(super) async fn run(mesh: &mut Mesh, out: &mut impl Write) -> io::Result<Outcome> {
    let mut failed = 0;
    for (number, scenario) in (1..).zip(SCENARIOS) {
        match scenario.before {
            Before::Nothing => {}
            Before::Stop(member) => mesh.app(member).stop().await,
            Before::Start(member) => mesh.app(member).restart().await?,
        }
        let observed = observe(mesh, number, scenario).await;
        report(number, scenario, &observed, out)?;
        failed += usize::from(!observed.faults.is_empty());
    }
    let total = SCENARIOS.len();
    writeln!(out, "{} of {total} scenarios did what they should.", total - failed)?;
    Ok(Outcome { total, failed })
}

/// What came of a scenario.
struct Observed {
    answer: String,
    /// By member: the line that was looked for, or why there is none.
    lines: Vec<(&'static Member, String)>,
    identities: Option<(String, String)>,
    faults: Vec<String>,
}

async fn observe(mesh: &mut Mesh, number: usize, scenario: &Scenario) -> Observed {
    let Scenario { call, expect, logged, identities, .. } = scenario;
    let id = format!("skiff-check-{number}");
    let mut logs = [&RATINGS, &DETAILS].map(|member| Log::from_here(mesh.folder.access_log(member)));
    let answer = send(call, call.to.address(), &id).await;
    let mut observed =
        Observed { answer: describe(&answer), lines: Vec::new(), identities: None, faults: compare(expect, &answer) };

    // A refused connection never gets as far as a request, so its line has no request id.
    let needle = if matches!(expect, Expect::Refused) { "" } else { id.as_str() };
    for &(member, wanted) in *logged {
        let log = &mut logs[usize::from(member.name == DETAILS.name)];
        match log.line(needle, wanted).await {
            Ok(line) => observed.lines.push((member, line)),
            Err(fault) => observed.faults.push(format!("{}: {fault}", member.name)),
        }
    }
    if let Some((caller, callee)) = identities {
        observed.identities = mesh.app(callee).last_client_cert().as_deref().and_then(identities_of);
        let expected = (caller.spiffe_id(), callee.spiffe_id());
        if observed.identities.as_ref() != Some(&expected) {
            observed.faults.push(format!("expected {} to call {} on the wire", expected.0, expected.1));
        }
    }
    observed
}

async fn send(call: &Call, address: SocketAddr, id: &str) -> Result<Response<Bytes>, ClientError> {
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = http::Uri::from_static(call.path);
    request.headers_mut().insert(header::HOST, header::HeaderValue::from_static(call.host));
    if let Ok(id) = id.parse() {
        request.headers_mut().insert("x-request-id", id);
    }
    client::send(address, request, REQUEST_DEADLINE).await
}

fn compare(expect: &Expect, answer: &Result<Response<Bytes>, ClientError>) -> Vec<String> {
    match (expect, answer) {
        (Expect::Refused, Err(ClientError::Exchange(..))) => Vec::new(),
        (Expect::Refused, _) => vec!["expected the connection to be closed without an answer".to_owned()],
        (Expect::Answer(status, _), Err(_)) => vec![format!("expected {status}")],
        (&Expect::Answer(status, body), Ok(answer)) => {
            let mut faults = Vec::new();
            if answer.status().as_u16() != status {
                faults.push(format!("expected {status}"));
            }
            if answer.headers().get(header::SERVER).is_none_or(|server| server != "envoy") {
                faults.push("expected server: envoy".to_owned());
            }
            if !String::from_utf8_lossy(answer.body()).contains(body) {
                faults.push(format!("expected {body:?} in the body"));
            }
            faults
        }
    }
}

fn describe(answer: &Result<Response<Bytes>, ClientError>) -> String {
    match answer {
        Err(error) => error.to_string(),
        Ok(answer) => {
            let server = answer.headers().get(header::SERVER).map_or("none".into(), |s| String::from_utf8_lossy(s.as_bytes()));
            let body = String::from_utf8_lossy(answer.body());
            format!("{}, server: {server}, body: {}", answer.status().as_u16(), body.chars().take(100).collect::<String>())
        }
    }
}

/// Caller and callee of `By=spiffe://…;Hash=…;Subject="";URI=spiffe://…`, the last element if there are several.
fn identities_of(client_cert: &str) -> Option<(String, String)> {
    let element = client_cert.rsplit(',').next()?;
    let value = |key: &str| element.split(';').find_map(|pair| pair.strip_prefix(key)).map(str::to_owned);
    Some((value("URI=")?, value("By=")?))
}

fn report(number: usize, scenario: &Scenario, observed: &Observed, out: &mut impl Write) -> io::Result<()> {
    let Call { method, to, host, path } = &scenario.call;
    writeln!(out, "{number}. {}", scenario.title)?;
    writeln!(out, "   request  {method} http://{host}{path} to {}", to.address())?;
    writeln!(out, "   answer   {}", observed.answer)?;
    for (member, line) in &observed.lines {
        writeln!(out, "   {:<8} {line}", member.name)?;
    }
    if let Some((caller, callee)) = &observed.identities {
        writeln!(out, "   on wire  {caller} calls {callee}")?;
    }
    for fault in &observed.faults {
        writeln!(out, "   FAILED   {fault}")?;
    }
    let verdict = if observed.faults.is_empty() { "ok" } else { "failed" };
    writeln!(out, "   {verdict}\n")
}

/// An access log that is being written.
struct Log {
    path: PathBuf,
    /// Bytes that were there before.
    start: usize,
}

impl Log {
    fn from_here(path: PathBuf) -> Self {
        let start = read(&path).len();
        Self { path, start }
    }

    /// Waits for a new line with both texts in it.
    async fn line(&mut self, needle: &str, wanted: &str) -> Result<String, String> {
        let started = Instant::now();
        loop {
            let text = read(&self.path);
            let new = text.get(self.start..).unwrap_or_default();
            let candidates = || new.lines().filter(|line| line.contains(needle));
            if let Some(line) = candidates().find(|line| line.contains(wanted)) {
                return Ok(line.to_owned());
            }
            if started.elapsed() > LOG_DEADLINE {
                let seen = candidates().next_back().map_or_else(|| "there is none".to_owned(), |line| format!("there is {line}"));
                return Err(format!("expected an access-log line with {wanted:?}; {seen}"));
            }
            tokio::time::sleep(LOG_INTERVAL).await;
        }
    }
}

/// A file that is not there yet is an empty one.
fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn answer(status: u16, server: &'static str, body: &'static str) -> Result<Response<Bytes>, ClientError> {
        let mut answer = Response::new(Bytes::from_static(body.as_bytes()));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        answer.headers_mut().insert(header::SERVER, header::HeaderValue::from_static(server));
        Ok(answer)
    }

    #[test]
    fn an_answer_must_be_right_in_everything() {
        let expect = Expect::Answer(403, "denied");
        assert!(compare(&expect, &answer(403, "envoy", "RBAC: access denied")).is_empty());
        assert_eq!(compare(&expect, &answer(200, "node", "a book")).len(), 3);
        let late = Err(ClientError::TimedOut(DETAILS.ingress, REQUEST_DEADLINE));
        assert_eq!(compare(&expect, &late).len(), 1);
        assert_eq!(compare(&Expect::Refused, &late).len(), 1);
        assert_eq!(compare(&Expect::Refused, &answer(403, "envoy", "")).len(), 1);
        let closed = Err(ClientError::Exchange(DETAILS.ingress, "closed".into()));
        assert!(compare(&Expect::Refused, &closed).is_empty());
    }

    #[test]
    fn identities_are_those_of_the_last_hop() {
        let first = "By=spiffe://td/ns/a/sa/x;Hash=00;Subject=\"\";URI=spiffe://td/ns/a/sa/w";
        let last = "By=spiffe://td/ns/a/sa/y;Hash=11;Subject=\"\";URI=spiffe://td/ns/a/sa/x";
        let expected = ("spiffe://td/ns/a/sa/x".to_owned(), "spiffe://td/ns/a/sa/y".to_owned());
        assert_eq!(identities_of(&format!("{first},{last}")), Some(expected));
        assert_eq!(identities_of("By=spiffe://td/ns/a/sa/y;Hash=11"), None);
    }

    #[tokio::test]
    async fn a_log_line_is_awaited_and_old_ones_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("details.log");
        fs::write(&path, "skiff-check-1 200 old\n").unwrap();
        let mut log = Log::from_here(path.clone());
        let (line, written) = tokio::join!(log.line("skiff-check-1", " 200 "), async {
            tokio::task::yield_now().await;
            fs::write(&path, "skiff-check-1 200 old\nskiff-check-2 200 x\nskiff-check-1 503 x\nskiff-check-1 200 new\n")
        });
        written.unwrap();
        assert_eq!(line.unwrap(), "skiff-check-1 200 new");
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_log_line_says_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("details.log");
        let mut log = Log::from_here(path.clone());
        fs::write(&path, "skiff-check-1 200 new\n").unwrap();
        let fault = log.line("skiff-check-1", " 503 ").await.unwrap_err();
        assert_eq!(fault, "expected an access-log line with \" 503 \"; there is skiff-check-1 200 new");
    }
}
