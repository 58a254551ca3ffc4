//! The wire of the control plane: messages and services generated from the `.proto` files under `proto/`.
//!
//! This crate owns the generated types and the encoded descriptors, and holds no logic: domain types live in
//! `basalt-model`, and the crates at the edge convert. Begin reading with `proto/basalt/api/v1/control_plane.proto`.
//!
//! Compatibility: fields are only added, numbers never change meaning, and the golden bytes in the tests hold that.

/// Generated code; documented in the `.proto` files.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated code")]
mod generated {
    pub mod basalt {
        pub mod api {
            pub mod v1 {
                tonic::include_proto!("basalt.api.v1");
            }
        }
        pub mod membership {
            pub mod v1 {
                tonic::include_proto!("basalt.membership.v1");
            }
        }
        pub mod node {
            pub mod v1 {
                tonic::include_proto!("basalt.node.v1");
            }
        }
        pub mod peer {
            pub mod v1 {
                tonic::include_proto!("basalt.peer.v1");
            }
        }
    }
}

/// `basalt.api.v1`: nodes, volumes, snapshots, cluster status, watch.
pub use generated::basalt::api::v1 as api;
/// `basalt.membership.v1`: members of the raft group.
pub use generated::basalt::membership::v1 as membership;
/// `basalt.node.v1`: the session between a daemon and the leader.
pub use generated::basalt::node::v1 as node;
/// `basalt.peer.v1`: raft messages between members.
pub use generated::basalt::peer::v1 as peer;

/// The encoded `FileDescriptorSet` of all services, for reflection and for tests that enumerate the methods.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The header in which a caller names the cluster that it means, and a member the cluster that it is of: a UUID.
pub const CLUSTER_ID_HEADER: &str = "basalt-cluster-id";

/// Protocol version of the node session that this build speaks at most.
pub const NODE_PROTOCOL_VERSION_MAX: u32 = 3;
/// Protocol version of the node session that this build speaks at least.
pub const NODE_PROTOCOL_VERSION_MIN: u32 = 1;
