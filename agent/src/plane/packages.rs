//! The package repository: `/install/…` of Tetrate's onboarding plane, from a folder that is laid out in the same way.
//!
//! Paths are not looked up but parsed: only what is a package's name is ever opened.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use data_encoding::HEXLOWER;
use futures_util::stream;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;

use super::workload::is_revision;

/// Downloads at once; further ones are told to come back.
const MAX_DOWNLOADS: usize = 64;
/// How long one may take.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(900);
/// Bytes of a piece.
const PIECE: usize = 64 * 1024;
/// Checksums that are remembered; there are fewer files than that.
const MAX_CHECKSUMS: usize = 256;

/// A folder of packages.
#[derive(Debug)]
pub(super) struct Packages {
    folder: PathBuf,
    downloads: Arc<Semaphore>,
    checksums: Mutex<HashMap<PathBuf, (Mark, String)>>,
}

/// What tells one state of a file from another.
type Mark = (u64, u64, i64, i64);

/// A file of the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    /// Below the folder.
    path: PathBuf,
    /// Its last part.
    name: &'static str,
    /// Its checksum is wanted, not the package.
    checksum: bool,
}

impl Packages {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, downloads: Arc::new(Semaphore::new(MAX_DOWNLOADS)), checksums: Mutex::default() }
    }

    /// The answer to one request.
    pub(super) async fn answer(&self, method: &Method, path: &str) -> Response<Body> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n".to_owned());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let Some(wanted) = parse(path) else { return not_found() };
        let answered = if wanted.checksum { self.checksum(&wanted).await } else { self.package(&wanted, method).await };
        let mut response = answered.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, path = %wanted.path.display(), "a package cannot be read");
            }
            not_found()
        });
        if *method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response
    }

    async fn package(&self, wanted: &Wanted, method: &Method) -> io::Result<Response<Body>> {
        let (file, length) = self.open(&wanted.path).await?;
        let Ok(permit) = self.downloads.clone().try_acquire_owned() else {
            let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "too many downloads\n".to_owned());
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
            return Ok(response);
        };
        let body = if *method == Method::HEAD { Body::empty() } else { download(file, length, permit) };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Ok(response)
    }

    /// As `sha256sum` writes and checks it: the file that lies beside the package, else what the package's bytes say.
    async fn checksum(&self, wanted: &Wanted) -> io::Result<Response<Body>> {
        let mut beside = wanted.path.clone().into_os_string();
        beside.push(".sha256");
        if let Ok((file, length)) = self.open(Path::new(&beside)).await
            && length <= 1024
        {
            let mut given = String::new();
            file.take(1024).read_to_string(&mut given).await?;
            return Ok(text(StatusCode::OK, given));
        }
        let (file, _) = self.open(&wanted.path).await?;
        let metadata = file.metadata().await?;
        let mark = (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        let known = self.checksums().get(&wanted.path).filter(|(of, _)| *of == mark).map(|(_, sum)| sum.clone());
        let sum = match known {
            Some(sum) => sum,
            None => {
                let file = file.into_std().await;
                let sum = tokio::task::spawn_blocking(move || sha256(file)).await.map_err(io::Error::other)??;
                let mut checksums = self.checksums();
                if checksums.len() >= MAX_CHECKSUMS {
                    checksums.clear();
                }
                checksums.insert(wanted.path.clone(), (mark, sum.clone()));
                sum
            }
        };
        Ok(text(StatusCode::OK, format!("{sum}  {}\n", wanted.name)))
    }

    /// A regular file that is really in the folder, and its length.
    async fn open(&self, path: &Path) -> io::Result<(File, u64)> {
        let (folder, path) = (self.folder.clone(), self.folder.join(path));
        let real = tokio::task::spawn_blocking(move || Ok::<_, io::Error>((folder.canonicalize()?, path.canonicalize()?)));
        let (folder, path) = real.await.map_err(io::Error::other)??;
        if !path.starts_with(&folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = File::open(path).await?;
        let metadata = file.metadata().await?;
        if metadata.is_file() { Ok((file, metadata.len())) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn checksums(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Mark, String)>> {
        self.checksums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `/install/{deb,rpm}/{amd64,arm64}/{onboarding-agent,istio-sidecar}.{deb,rpm}`, the sidecar also under
/// `/install/istio-sidecar/<revision>/`, each perhaps with `.sha256`.
fn parse(path: &str) -> Option<Wanted> {
    let mut parts = path.strip_prefix("/install/")?.split('/');
    let mut first = parts.next()?;
    let mut folder = PathBuf::new();
    let revised = first == "istio-sidecar";
    if revised {
        let revision = parts.next().filter(|revision| is_revision(revision))?;
        folder.push("istio-sidecar");
        folder.push(revision);
        first = parts.next()?;
    }
    let (kind, arch, name) = (first, parts.next()?, parts.next()?);
    if parts.next().is_some() || !matches!(arch, "amd64" | "arm64") {
        return None;
    }
    let (name, checksum) = name.strip_suffix(".sha256").map_or((name, false), |name| (name, true));
    let name = match (kind, name) {
        ("deb", "onboarding-agent.deb") if !revised => "onboarding-agent.deb",
        ("rpm", "onboarding-agent.rpm") if !revised => "onboarding-agent.rpm",
        ("deb", "istio-sidecar.deb") => "istio-sidecar.deb",
        ("rpm", "istio-sidecar.rpm") => "istio-sidecar.rpm",
        _ => return None,
    };
    folder.extend([kind, arch, name]);
    Some(Wanted { path: folder, name, checksum })
}

fn sha256(mut file: std::fs::File) -> io::Result<String> {
    let (mut context, mut piece) = (Context::new(&SHA256), vec![0; PIECE]);
    loop {
        match io::Read::read(&mut file, &mut piece)? {
            0 => return Ok(HEXLOWER.encode(context.finish().as_ref())),
            length => context.update(&piece[..length]),
        }
    }
}

/// The file in pieces, not a byte more than was announced. Holds its place among the downloads.
fn download(file: File, length: u64, permit: OwnedSemaphorePermit) -> Body {
    let until = Instant::now() + DOWNLOAD_TIMEOUT;
    let pieces = stream::try_unfold((file, length, permit), move |(mut file, left, permit)| async move {
        if left == 0 {
            return Ok(None);
        }
        if Instant::now() > until {
            return Err(Status::deadline_exceeded("the download took too long"));
        }
        let mut piece = vec![0; usize::try_from(left).map_or(PIECE, |left| left.min(PIECE))];
        let read = file.read(&mut piece).await.map_err(|error| Status::internal(error.to_string()))?;
        if read == 0 {
            return Err(Status::internal("the file became shorter"));
        }
        piece.truncate(read);
        Ok(Some((Frame::data(Bytes::from(piece)), (file, left - read as u64, permit))))
    });
    Body::new(StreamBody::new(pieces))
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let length = text.len();
    let mut response = Response::new(Body::new(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

fn not_found() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "no such package\n".to_owned())
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn get(packages: &Packages, method: Method, path: &str) -> (StatusCode, http::HeaderMap, Bytes) {
        let (head, body) = packages.answer(&method, path).await.into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes())
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("packages");
        for path in ["deb/amd64/onboarding-agent.deb", "istio-sidecar/canary/rpm/arm64/istio-sidecar.rpm"] {
            let file = root.join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, vec![b'x'; 200_000]).unwrap();
        }
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        std::fs::create_dir_all(root.join("deb/arm64")).unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), root.join("deb/arm64/onboarding-agent.deb")).unwrap();
        std::fs::create_dir(root.join("deb/arm64/istio-sidecar.deb")).unwrap();
        folder
    }

    #[tokio::test]
    async fn packages_and_their_checksums_are_served() {
        let folder = folder();
        let packages = Packages::new(folder.path().join("packages"));
        for path in ["/install/deb/amd64/onboarding-agent.deb", "/install/istio-sidecar/canary/rpm/arm64/istio-sidecar.rpm"] {
            let (status, headers, body) = get(&packages, Method::GET, path).await;
            assert_eq!((status, body.len(), headers["content-length"].to_str().unwrap()), (StatusCode::OK, 200_000, "200000"));
            let (status, headers, body) = get(&packages, Method::HEAD, path).await;
            assert_eq!((status, body.len(), headers["content-length"].to_str().unwrap()), (StatusCode::OK, 0, "200000"));
            for _ in 0..2 {
                let (status, _, body) = get(&packages, Method::GET, &format!("{path}.sha256")).await;
                let expected = "4b54d6a68f01eb6e3faf9f6a8e31a2d30c9f8c6f5cb4a1c2bb40a8c6a2d1a9b0".len();
                let line = String::from_utf8(body.to_vec()).unwrap();
                let (sum, name) = line.trim_end().split_once("  ").unwrap();
                assert_eq!((status, sum.len(), name), (StatusCode::OK, expected, path.rsplit('/').next().unwrap()));
            }
        }
        let given = folder.path().join("packages/deb/amd64/onboarding-agent.deb.sha256");
        std::fs::write(given, "abc  onboarding-agent.deb\n").unwrap();
        let (_, _, body) = get(&packages, Method::GET, "/install/deb/amd64/onboarding-agent.deb.sha256").await;
        assert_eq!(body, "abc  onboarding-agent.deb\n");
    }

    #[tokio::test]
    async fn nothing_else_is() {
        let folder = folder();
        let packages = Packages::new(folder.path().join("packages"));
        for path in [
            "/install/",
            "/install/deb/amd64/",
            "/install/deb/amd64/istio-sidecar.deb",
            "/install/deb/amd64/onboarding-agent.rpm",
            "/install/deb/amd64/../amd64/onboarding-agent.deb",
            "/install/deb/%2e%2e/onboarding-agent.deb",
            "/install/deb/riscv64/onboarding-agent.deb",
            "/install/deb/amd64/onboarding-agent.deb/x",
            "/install/istio-sidecar/../deb/amd64/istio-sidecar.deb",
            "/install/istio-sidecar/canary/rpm/arm64/onboarding-agent.rpm",
            "/install/istio-sidecar/Canary/rpm/arm64/istio-sidecar.rpm",
            // A link out of the folder, and a folder.
            "/install/deb/arm64/onboarding-agent.deb",
            "/install/deb/arm64/istio-sidecar.deb",
        ] {
            assert_eq!(get(&packages, Method::GET, path).await.0, StatusCode::NOT_FOUND, "{path}");
        }
        let (status, headers, _) = get(&packages, Method::POST, "/install/deb/amd64/onboarding-agent.deb").await;
        assert_eq!((status, headers["allow"].to_str().unwrap()), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
        let taken = packages.downloads.clone().try_acquire_many_owned(u32::try_from(MAX_DOWNLOADS).unwrap()).unwrap();
        let path = "/install/deb/amd64/onboarding-agent.deb";
        assert_eq!(get(&packages, Method::GET, path).await.0, StatusCode::SERVICE_UNAVAILABLE);
        drop(taken);
        assert_eq!(get(&packages, Method::GET, path).await.0, StatusCode::OK);
    }
}
