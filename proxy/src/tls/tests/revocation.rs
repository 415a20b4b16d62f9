use super::*;
use crate::config::Revocation;

fn inline(lists: &[String]) -> Option<Revocation> {
    Some(Revocation { lists: CertificateSource::RevocationInline(InlinePem::new(lists.concat())), leaf_only: false })
}

fn numbered(ca: &Ca, spiffe: &str, serial: u64) -> Leaf {
    ca.issue(vec![uri(spiffe)], |params| params.serial_number = Some(serial.into()))
}

/// Whether the server takes client number `serial`, and if not, why.
async fn server_takes(ca: &Ca, revocation: Option<Revocation>, serial: u64) -> Result<(), String> {
    let tls = DownstreamTls { revocation, ..downstream() };
    let server = ServerContext::new(&workload(ca, &ca.workload(DETAILS)), &tls).unwrap();
    let client = workload(ca, &numbered(ca, PRODUCTPAGE, serial));
    let client = ClientContext::new(&client, &upstream()).unwrap();
    shake(&server, &client, None).await.0.map(drop).map_err(|error| failure_reason(&error))
}

#[tokio::test]
async fn revoked_clients_are_refused() {
    let ca = Ca::new("mesh");
    let lists = || inline(&[ca.revokes(&[7], 1)]);
    assert_eq!(server_takes(&ca, lists(), 8).await, Ok(()));
    let reason = server_takes(&ca, lists(), 7).await.unwrap_err();
    assert!(reason.ends_with("against_provided_CRLs_failed:_certificate_revoked:TLS_error_end"), "{reason}");
    assert_eq!(server_takes(&ca, None, 7).await, Ok(()));
}

#[tokio::test]
async fn a_list_that_has_expired_or_is_somebody_elses_vouches_for_nobody() {
    let ca = Ca::new("mesh");
    let expired = server_takes(&ca, inline(&[ca.revokes(&[7], -1)]), 8).await.unwrap_err();
    assert!(expired.contains("CRL_has_expired"), "{expired}");
    let other = Ca::new("other").revokes(&[], 1);
    let unknown = server_takes(&ca, inline(std::slice::from_ref(&other)), 8).await.unwrap_err();
    assert!(unknown.contains("unable_to_get_certificate_CRL"), "{unknown}");
    assert_eq!(server_takes(&ca, inline(&[other, ca.revokes(&[], 1)]), 8).await, Ok(()));
    // The name alone is not enough.
    let namesake = Ca::new("mesh").revokes(&[], 1);
    assert!(server_takes(&ca, inline(&[namesake]), 8).await.is_err());
}

#[tokio::test]
async fn revoked_servers_are_refused() {
    let ca = Ca::new("mesh");
    for (serial, taken) in [(7, false), (8, true)] {
        let server = ServerContext::new(&workload(&ca, &numbered(&ca, DETAILS, serial)), &downstream()).unwrap();
        let tls = UpstreamTls { revocation: inline(&[ca.revokes(&[7], 1)]), ..upstream() };
        let client = ClientContext::new(&workload(&ca, &ca.workload(PRODUCTPAGE)), &tls).unwrap();
        let connected = shake(&server, &client, None).await.1;
        assert_eq!(connected.is_ok(), taken, "{serial}");
        if let Err(error) = connected {
            assert!(failure_reason(&error).contains("certificate_revoked"), "{error}");
        }
    }
}

#[tokio::test]
async fn whoever_signed_the_leaf_is_asked_about_too_unless_the_leaf_alone_counts() {
    let root = Ca::new("root");
    let intermediate = root.intermediate("intermediate", 70);
    let leaf = numbered(&intermediate, PRODUCTPAGE, 8);
    let chain = vec![leaf.certificate.clone(), intermediate.root()];
    let client = Secrets::new();
    client.set("default", Secret::Certificate { chain, key: Arc::clone(&leaf.key) }).unwrap();
    client.set("ROOTCA", root.trust()).unwrap();
    let client = ClientContext::new(&client, &upstream()).unwrap();
    let mut outcomes = Vec::new();
    for (of_root, leaf_only) in
        [(Some(vec![]), false), (Some(vec![70]), false), (None, false), (Some(vec![70]), true), (None, true)]
    {
        let own = [intermediate.revokes(&[9], 1)];
        let lists: Vec<_> = own.into_iter().chain(of_root.map(|serials| root.revokes(&serials, 1))).collect();
        let revocation = inline(&lists).map(|lists| Revocation { leaf_only, ..lists });
        let server = workload(&root, &root.workload(DETAILS));
        let server = ServerContext::new(&server, &DownstreamTls { revocation, ..downstream() }).unwrap();
        outcomes.push(shake(&server, &client, None).await.0.is_ok());
    }
    assert_eq!(outcomes, [true, false, false, true, true]);
}

#[tokio::test]
async fn a_file_of_lists_is_read_again_and_a_broken_one_changes_nothing() {
    let ca = Ca::new("mesh");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("crl.pem");
    let revocation = Some(Revocation { lists: CertificateSource::RevocationFile(file.clone()), leaf_only: false });
    let tls = DownstreamTls { revocation, ..downstream() };
    let secrets = workload(&ca, &ca.workload(DETAILS));
    assert!(matches!(ServerContext::new(&secrets, &tls), Err(TlsError::File { .. })), "it is not there yet");
    std::fs::write(&file, "no list").unwrap();
    assert!(matches!(ServerContext::new(&secrets, &tls), Err(TlsError::Empty(_))));

    std::fs::write(&file, ca.revokes(&[], 1)).unwrap();
    let server = ServerContext::new(&secrets, &tls).unwrap();
    let client = workload(&ca, &numbered(&ca, PRODUCTPAGE, 7));
    let client = ClientContext::new(&client, &upstream()).unwrap();
    let taken = async || shake(&server, &client, None).await.0.is_ok();
    assert!(taken().await);
    std::fs::write(&file, ca.revokes(&[7], 1)).unwrap();
    assert!(secrets.reload_files().is_empty());
    assert!(!taken().await);
    std::fs::write(&file, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").unwrap();
    let errors = secrets.reload_files();
    assert!(errors.len() == 1 && errors[0].to_string().contains("crl.pem"), "{errors:?}");
    assert!(!taken().await);
    assert!(secrets.certificates().iter().all(|status| status.name != file.display().to_string()));
}

#[test]
fn lists_without_roots_are_a_contradiction() {
    let revocation = inline(&[Ca::new("mesh").revokes(&[], 1)]);
    let tls = UpstreamTls { trust: None, sans: vec![], revocation: revocation.clone(), ..upstream() };
    assert!(matches!(ClientContext::new(&Secrets::new(), &tls), Err(TlsError::Config(_))));
    let tls = DownstreamTls { trust: None, sans: vec![], require_client_certificate: false, revocation, ..downstream() };
    assert!(matches!(ServerContext::new(&Secrets::new(), &tls), Err(TlsError::Config(_))));
}
