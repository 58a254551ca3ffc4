//! Any bytes: nothing panics, nothing hangs.

use basalt_dma::Buffer;
use basalt_nvme_wire::pdu::{Digests, InitializeRequest, InitializeResponse};
use basalt_nvmf_host::{Data, IoCommand};
use proptest::prelude::*;

use super::pipe::pipe;
use super::rig::Rig;
use crate::host::connection::Connection as HostConnection;

fn digests() -> impl Strategy<Value = Digests> {
    (any::<bool>(), any::<bool>()).prop_map(|(header, data)| Digests { header, data })
}

/// PDU types and lengths are likely to be right, all else is anything.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let pdu = (0u8..10, any::<u8>(), prop::sample::select(vec![24u8, 72, 128]), 0u8..90, 0u16..9000)
        .prop_flat_map(|(kind, flags, header, offset, total)| {
            let rest = prop::collection::vec(any::<u8>(), 0..200);
            rest.prop_map(move |rest| {
                let [low, high] = total.to_le_bytes();
                let mut bytes = vec![kind, flags & 0xf, header, offset, low, high, 0, 0];
                bytes.extend(rest);
                bytes
            })
        });
    prop::collection::vec(pdu, 1..8).prop_map(|pdus| pdus.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_target_stands_any_bytes(seed: u64, digests in digests(), initialized: bool, bytes in bytes()) {
        let mut rig = Rig::new();
        let (host, end) = pipe(seed, 10_000);
        let mut connection = rig.accept(end, 0);
        if initialized {
            host.inject(&InitializeRequest { data_alignment: 4, digests, r2t_max: 1 }.emit());
        }
        host.inject(&bytes);
        for _ in 0..100 {
            rig.turn(&mut [&mut connection]);
        }
        rig.now += rig.options.connect_timeout;
        connection.tick(&mut rig.context());
        rig.now += rig.options.termination_timeout;
        connection.tick(&mut rig.context());
        prop_assert!(connection.is_done());
    }

    #[test]
    fn a_host_stands_any_bytes(seed: u64, digests in digests(), initialized: bool, bytes in bytes()) {
        let (wire, controller) = pipe(seed, 10_000);
        let mut host = HostConnection::new(wire, digests, 8, 8192);
        for tag in 0..4 {
            let read = basalt_nvme_wire::ReadWrite::new(tag, 1);
            host.submit(tag, IoCommand::Read(read).with(1, Data::ToHost(Buffer::zeroed(512)))).unwrap();
        }
        if initialized {
            let response = InitializeResponse { data_alignment: 4, digests, host_data_max: 65_536 };
            controller.inject(&response.emit());
        }
        controller.inject(&bytes);
        let mut staging = Buffer::zeroed(65_536);
        let mut outcomes = Vec::new();
        for _ in 0..100 {
            host.poll(&mut staging, &mut outcomes);
        }
        prop_assert_eq!(host.outstanding() + outcomes.len(), 4);
    }
}
