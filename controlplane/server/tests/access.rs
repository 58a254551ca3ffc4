//! The access table and the services agree: every method that exists is in the table, and nothing else.

use std::collections::BTreeSet;

use basalt_identity::access;
use prost::Message;
use prost_types::FileDescriptorSet;

fn methods(descriptors: &[u8]) -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(descriptors).expect("descriptors decode");
    let mut methods = BTreeSet::new();
    for file in set.file {
        for service in &file.service {
            for method in &service.method {
                methods.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    methods
}

#[test]
fn every_method_is_in_the_table_and_nothing_else() {
    let mut exist = methods(basalt_proto::FILE_DESCRIPTOR_SET);
    exist.extend(methods(tonic_health::pb::FILE_DESCRIPTOR_SET));
    exist.extend(methods(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET));
    let listed = access::RULES.iter().map(|rule| rule.method.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(exist.difference(&listed).collect::<Vec<_>>(), Vec::<&String>::new(), "not in the table");
    assert_eq!(listed.difference(&exist).collect::<Vec<_>>(), Vec::<&String>::new(), "do not exist");
}
