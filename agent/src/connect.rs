//! Where a sidecar's configuration and certificates come from: Istio YAML and an Istio certificate authority.

use std::convert::Infallible;

use tokio::sync::watch;

use crate::identity::{IdentityManager, IdentityStatus};
use crate::sidecar::{Identity, SecretPublisher, Translate, Translation};
use crate::translate::istio::{self, DocumentError, Documents, Workload};

/// The configuration of `workload` from Istio YAML.
pub fn istio_yaml(workload: Workload) -> Translate {
    Box::new(move |documents| {
        let documents = Documents::parse(documents, &workload.namespace).map_err(lines)?;
        let istio::Translation { snapshot, warnings } = istio::translate(&documents, &workload).map_err(lines)?;
        Ok(Translation { snapshot, warnings })
    })
}

/// Certificates as `manager` gets them; its failures show on the readiness page.
pub fn certificates(manager: IdentityManager) -> Identity {
    Box::new(|publisher| {
        Box::pin(async move {
            let failures = report_failures(manager.status(), publisher.clone());
            tokio::select! {
                never = manager.run(move |name, secret| publisher.publish(name, secret).map_err(|error| error.to_string())) => never,
                never = failures => never,
            }
        })
    })
}

async fn report_failures(mut status: watch::Receiver<IdentityStatus>, publisher: SecretPublisher) -> Infallible {
    loop {
        if status.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if let Some(reason) = &status.borrow_and_update().last_error {
            publisher.waiting(reason);
        }
    }
}

/// One line an error.
#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
pub(crate) fn lines(errors: Vec<DocumentError>) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}
