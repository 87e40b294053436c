//! What the fake engine answers to `space`.

use virt_cdp::api::v1;

use crate::fake::point;

pub(crate) fn space(request: &v1::SpaceRequest) -> v1::Space {
    let is_asked = request.from.is_some() || request.to.is_some();
    let layer = |seq, first_point, image_bytes| v1::LayerSpace {
        volume: "vda".into(),
        seq,
        first_point,
        image_bytes,
        hashes_bytes: 1 << 20,
    };
    v1::Space {
        harbor: "/var/lib/virt-cdp/web1".into(),
        layers: vec![
            layer(4000, None, 5 << 30),
            layer(4567, Some(point()), 3 << 20),
        ],
        journal: Some(v1::JournalSpace {
            sealed_segments: 1,
            sealed_bytes: 64 << 20,
            cold_segments: 2,
            cold_bytes: 512 << 20,
            recorded_bytes: 12 << 20,
            reserved_bytes: 52 << 20,
        }),
        unfinished_bytes: 4096,
        other_bytes: 8192,
        total_bytes: 6_045_052_928,
        deletion: is_asked.then_some(v1::Deletion {
            points: 7,
            held: 2,
            freed_soon_bytes: 256 << 20,
            freed_later_bytes: 3 << 20,
        }),
    }
}
