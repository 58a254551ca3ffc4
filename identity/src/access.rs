//! Which role may call which method. What is not listed is denied.

use crate::Role;

/// One line of the table: a method as gRPC names it, and who may call it.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// `/package.Service/Method`.
    pub method: &'static str,
    /// Who may call it. A member calls API methods only on behalf of one of these.
    pub roles: &'static [Role],
}

const PEOPLE_AND_OPERATOR: &[Role] = &[Role::Operator, Role::Cli];
const CLI: &[Role] = &[Role::Cli];
const EVERYONE: &[Role] = &Role::ALL;

const fn rule(method: &'static str, roles: &'static [Role]) -> Rule {
    Rule { method, roles }
}

/// The table. A test of `basalt-server` compares it with the methods that exist.
pub const RULES: &[Rule] = &[
    rule("/basalt.api.v1.ControlPlane/PutNode", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/GetNode", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/ListNodes", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/DeleteNode", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/UnbindNode", CLI),
    rule("/basalt.api.v1.ControlPlane/AbandonNode", CLI),
    rule("/basalt.api.v1.ControlPlane/AbandonPool", CLI),
    rule("/basalt.api.v1.ControlPlane/CreateVolume", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/UpdateVolume", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/GetVolume", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/ListVolumes", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/DeleteVolume", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/ReleaseVolume", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/CreateSnapshot", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/GetSnapshot", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/ListSnapshots", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/DeleteSnapshot", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/ReleaseSnapshot", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/GetClusterStatus", PEOPLE_AND_OPERATOR),
    rule("/basalt.api.v1.ControlPlane/Watch", PEOPLE_AND_OPERATOR),
    rule("/basalt.membership.v1.Membership/ListMembers", PEOPLE_AND_OPERATOR),
    rule("/basalt.membership.v1.Membership/AddMember", CLI),
    rule("/basalt.membership.v1.Membership/RemoveMember", CLI),
    rule("/basalt.membership.v1.Membership/ReplaceMember", CLI),
    rule("/basalt.membership.v1.Membership/TransferLeadership", CLI),
    rule("/basalt.membership.v1.Membership/SetFeatureLevel", CLI),
    rule("/basalt.node.v1.NodeSession/Session", &[Role::Node]),
    rule("/basalt.peer.v1.Peer/Send", &[Role::Member]),
    rule("/grpc.health.v1.Health/Check", EVERYONE),
    rule("/grpc.health.v1.Health/Watch", EVERYONE),
    rule("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", CLI),
];

/// Whether a caller with this role may call this method (`/package.Service/Method`).
pub fn is_allowed(role: Role, method: &str) -> bool {
    RULES.iter().any(|rule| rule.method == method && rule.roles.contains(&role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlisted_methods_are_denied_to_everyone() {
        for role in Role::ALL {
            for method in ["", "/", "/basalt.api.v1.ControlPlane/", "/basalt.api.v1.ControlPlane/Drop"] {
                assert!(!is_allowed(role, method));
            }
        }
    }

    #[test]
    fn no_method_is_listed_twice_and_none_is_listed_for_nobody() {
        for (index, rule) in RULES.iter().enumerate() {
            assert!(!rule.roles.is_empty(), "{}", rule.method);
            assert!(RULES[index + 1..].iter().all(|other| other.method != rule.method), "{}", rule.method);
        }
    }

    #[test]
    fn a_node_opens_sessions_and_changes_nothing_else() {
        let callable = RULES.iter().filter(|rule| rule.roles.contains(&Role::Node));
        let callable = callable.map(|rule| rule.method).filter(|method| !method.starts_with("/grpc.health"));
        assert_eq!(callable.collect::<Vec<_>>(), ["/basalt.node.v1.NodeSession/Session"]);
    }
}
