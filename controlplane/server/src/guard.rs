//! The door of every service: who calls, and may they?

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use basalt_core::Status as MemberStatus;
use basalt_identity::{
    ASSERTED_IDENTITY_HEADER, FORWARDED_IDENTITY_HEADER, Identity, Role, Security, access,
};
use basalt_model::ClusterId;
use basalt_proto::{CLUSTER_ID_HEADER, api::Reason};
use futures::{
    TryFutureExt,
    future::{Either, MapOk},
};
use http::{HeaderMap, HeaderValue};
use tokio::sync::watch;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::{errors, listen::PeerInfo};

/// The caller of a request, checked: an extension of every request that reaches a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Who asks.
    pub(crate) identity: Identity,
    /// Whether a member forwarded the request for them.
    pub(crate) forwarded: bool,
}

/// Puts a [`Guard`] before a service.
#[derive(Debug, Clone)]
pub(crate) struct GuardLayer {
    security: Security,
    status: watch::Receiver<MemberStatus>,
}

impl GuardLayer {
    /// A layer for a process that speaks like this, with a member that is this.
    pub(crate) fn new(security: Security, status: watch::Receiver<MemberStatus>) -> Self {
        Self { security, status }
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, security: self.security.clone(), status: self.status.clone() }
    }
}

/// Lets through what the access table allows.
#[derive(Debug, Clone)]
pub(crate) struct Guard<S> {
    inner: S,
    security: Security,
    status: watch::Receiver<MemberStatus>,
}

/// Writes on an answer which cluster it is from.
type Stamp = Box<dyn FnOnce(http::Response<Body>) -> http::Response<Body> + Send>;

impl<S> Service<http::Request<Body>> for Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<MapOk<S::Future, Stamp>, Ready<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<PeerInfo>().and_then(|peer| peer.identity.as_ref());
        let cluster = self.status.borrow().cluster;
        let checked = check(&self.security, peer, request.headers(), request.uri().path())
            .and_then(|caller| means_us(cluster, request.headers()).map(|()| caller));
        match checked {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request).map_ok(stamp(cluster)))
            }
            Err(status) => {
                metrics::counter!("basalt_control_calls_denied_total").increment(1);
                tracing::warn!(method = request.uri().path(), why = status.message(), "a call was denied");
                Either::Right(ready(Ok(status.into_http())))
            }
        }
    }
}

/// Refuses a request that is meant for another cluster: this member may be the one that is not where it should be.
fn means_us(ours: Option<ClusterId>, headers: &HeaderMap) -> Result<(), Box<Status>> {
    let meant = headers.get(CLUSTER_ID_HEADER).and_then(|value| value.to_str().ok());
    match (ours.map(|ours| ours.to_string()), meant) {
        (Some(ours), Some(meant)) if ours != meant => {
            let message =
                format!("this member is of cluster {ours}, the request is meant for cluster {meant}");
            Err(Box::new(errors::status(Code::Unavailable, Reason::OtherCluster, message)))
        }
        _ => Ok(()),
    }
}

fn stamp(cluster: Option<ClusterId>) -> Stamp {
    let value = cluster.and_then(|cluster| HeaderValue::from_str(&cluster.to_string()).ok());
    Box::new(move |mut response| {
        if let Some(value) = value {
            response.headers_mut().insert(CLUSTER_ID_HEADER, value);
        }
        response
    })
}

/// Who calls, if they may. `peer` is what the certificate said.
fn check(
    security: &Security,
    peer: Option<&Identity>,
    headers: &HeaderMap,
    method: &str,
) -> Result<Caller, Box<Status>> {
    let denied =
        |message: String| Box::new(errors::status(Code::PermissionDenied, Reason::Forbidden, message));
    let stated = |key: &str| -> Result<Option<Identity>, Box<Status>> {
        let Some(value) = headers.get(key) else { return Ok(None) };
        let identity = value.to_str().ok().and_then(|text| text.parse().ok());
        identity.map(Some).ok_or_else(|| denied(format!("the header {key} is not an identity")))
    };
    let direct = match security {
        Security::Tls(_) => peer.cloned(),
        Security::Plaintext(_) => stated(ASSERTED_IDENTITY_HEADER)?,
    };
    let direct = direct.ok_or_else(|| denied("the caller states no identity".to_owned()))?;
    let own_cluster = security.identity().cluster();
    let forwarded = match direct.role() {
        Role::Member => stated(FORWARDED_IDENTITY_HEADER)?,
        Role::Node | Role::Operator | Role::Cli => None,
    };
    let caller = Caller { forwarded: forwarded.is_some(), identity: forwarded.unwrap_or(direct) };
    if caller.identity.cluster() != own_cluster {
        return Err(denied(format!("{} is not of cluster {own_cluster}", caller.identity)));
    }
    if !access::is_allowed(caller.identity.role(), method) {
        return Err(denied(format!("{} may not call {method}", caller.identity)));
    }
    Ok(caller)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: &str = "/basalt.api.v1.ControlPlane/CreateVolume";
    const SEND: &str = "/basalt.peer.v1.Peer/Send";

    fn identity(role: Role) -> Identity {
        Identity::new("c1", role, "x").unwrap()
    }

    fn plaintext() -> Security {
        Security::Plaintext(identity(Role::Member))
    }

    fn headers(entries: &[(&'static str, &Identity)]) -> HeaderMap {
        entries
            .iter()
            .map(|(key, value)| (key.parse().unwrap(), value.to_string().parse().unwrap()))
            .collect()
    }

    #[test]
    fn callers_without_identity_are_denied() {
        assert!(check(&plaintext(), None, &HeaderMap::new(), CREATE).is_err());
    }

    #[test]
    fn roles_do_what_the_table_says() {
        for role in Role::ALL {
            let stated = identity(role);
            let headers = headers(&[(ASSERTED_IDENTITY_HEADER, &stated)]);
            for rule in access::RULES {
                let allowed = check(&plaintext(), None, &headers, rule.method).is_ok();
                assert_eq!(allowed, rule.roles.contains(&role), "{role} {}", rule.method);
            }
        }
    }

    #[test]
    fn only_members_forward_and_only_what_the_caller_may() {
        let (member, cli, node) = (identity(Role::Member), identity(Role::Cli), identity(Role::Node));
        let forward = |by: &Identity, for_: &Identity, method| {
            let headers = headers(&[(ASSERTED_IDENTITY_HEADER, by), (FORWARDED_IDENTITY_HEADER, for_)]);
            check(&plaintext(), None, &headers, method)
        };
        let caller = forward(&member, &cli, CREATE).unwrap();
        assert_eq!(caller, Caller { identity: cli.clone(), forwarded: true });
        assert!(forward(&member, &node, CREATE).is_err());
        assert!(forward(&node, &cli, CREATE).is_err());
        assert!(forward(&cli, &member, SEND).is_err());
    }

    #[test]
    fn a_request_for_another_cluster_is_not_taken() {
        let (ours, theirs) = (ClusterId::from_random(1), ClusterId::from_random(2));
        let meant = |cluster: ClusterId| {
            HeaderMap::from_iter([(CLUSTER_ID_HEADER.parse().unwrap(), cluster.to_string().parse().unwrap())])
        };
        assert!(means_us(Some(ours), &meant(ours)).is_ok());
        assert!(means_us(Some(ours), &HeaderMap::new()).is_ok());
        assert!(means_us(None, &meant(ours)).is_ok());
        let refused = means_us(Some(ours), &meant(theirs)).unwrap_err();
        assert!(refused.message().contains(&ours.to_string()), "{refused}");
    }

    #[test]
    fn another_cluster_is_denied() {
        let stranger = Identity::new("c2", Role::Cli, "x").unwrap();
        assert!(
            check(&plaintext(), None, &headers(&[(ASSERTED_IDENTITY_HEADER, &stranger)]), CREATE).is_err()
        );
    }
}
