//! Real handshakes between credentials of one and of two authorities.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use basalt_identity::{
    CertificateAuthority, Connector, Credentials, Identity, IdentityError, Role, Security, SubjectName,
};
use http::Uri;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tower::Service;

fn credentials(directory: &Path, cluster: &str, role: Role, name: &str) -> Arc<Credentials> {
    let authority = CertificateAuthority::create_or_load(directory, cluster).unwrap();
    let identity = Identity::new(cluster, role, name).unwrap();
    let files = authority.issue(&identity, &[SubjectName::Ip([127, 0, 0, 1].into())]).unwrap();
    Credentials::load(&files).unwrap()
}

/// Connects `client` to `server` and says whom the server saw.
async fn handshake(server: Arc<Credentials>, client: Arc<Credentials>) -> io::Result<Identity> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let accepted = tokio::spawn(async move {
        let (stream, _) = listener.accept().await?;
        let acceptor = tokio_rustls::TlsAcceptor::from(server.server_config());
        let mut stream = acceptor.accept(stream).await?;
        stream.write_all(b"!").await?;
        let certificate = &stream.get_ref().1.peer_certificates().expect("clients are authenticated")[0];
        Ok::<_, io::Error>(Identity::of_certificate(certificate).expect("it states an identity"))
    });
    let uri: Uri = format!("http://{address}").parse().unwrap();
    let mut stream = Connector::new(Security::Tls(client)).call(uri).await?.into_inner();
    // In TLS 1.3 a client learns only here that its certificate was refused.
    stream.read_exact(&mut [0]).await?;
    accepted.await.expect("the acceptor does not panic")
}

#[tokio::test]
async fn a_node_meets_a_member() {
    let directory = tempfile::tempdir().unwrap();
    let member = credentials(directory.path(), "c1", Role::Member, "1");
    let node = credentials(directory.path(), "c1", Role::Node, "n1");
    assert_eq!(handshake(member, Arc::clone(&node)).await.unwrap(), *node.identity());
}

#[tokio::test]
async fn a_server_that_is_no_member_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let node = credentials(directory.path(), "c1", Role::Node, "n1");
    let cli = credentials(directory.path(), "c1", Role::Cli, "cli");
    let error = handshake(node, cli).await.unwrap_err();
    assert!(error.to_string().contains("not a member"), "{error}");
}

#[tokio::test]
async fn another_authority_is_refused_by_both_sides() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let member = credentials(ours.path(), "c1", Role::Member, "1");
    let stranger = credentials(theirs.path(), "c1", Role::Cli, "cli");
    assert!(handshake(member, stranger).await.is_err());
}

#[tokio::test]
async fn changed_files_take_effect_for_new_connections() {
    let directory = tempfile::tempdir().unwrap();
    let member = credentials(directory.path(), "c1", Role::Member, "1");
    let node = credentials(directory.path(), "c1", Role::Node, "n1");
    assert!(!member.reload_if_changed().unwrap());
    // A new authority in place of the old one, and new certificates under the same file names.
    std::fs::remove_file(directory.path().join("ca.key")).unwrap();
    let new_member = credentials(directory.path(), "c1", Role::Member, "1");
    credentials(directory.path(), "c1", Role::Node, "n1");
    assert!(handshake(Arc::clone(&new_member), Arc::clone(&node)).await.is_err());
    assert!(node.reload_if_changed().unwrap());
    assert!(member.reload_if_changed().unwrap());
    handshake(member, Arc::clone(&node)).await.unwrap();
    handshake(new_member, node).await.unwrap();
}

#[tokio::test]
async fn a_process_never_changes_its_identity() {
    let directory = tempfile::tempdir().unwrap();
    let node = credentials(directory.path(), "c1", Role::Node, "n1");
    credentials(directory.path(), "c1", Role::Node, "n2");
    for suffix in ["crt", "key"] {
        let path = |name: &str| directory.path().join(format!("node-{name}.{suffix}"));
        std::fs::rename(path("n2"), path("n1")).unwrap();
    }
    assert!(node.reload_if_changed().is_err());
}

#[test]
fn plaintext_stays_on_loopback() {
    let security = Security::Plaintext(Identity::new("c1", Role::Cli, "cli").unwrap());
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    security.check_address(address("127.0.0.1:1")).unwrap();
    security.check_address(address("[::1]:1")).unwrap();
    for off in ["0.0.0.0:1", "10.0.0.1:1", "[::]:1"] {
        let error = security.check_address(address(off)).unwrap_err();
        assert!(matches!(error, IdentityError::PlaintextOffLoopback { .. }));
    }
}
