//! What Prometheus reads: the newest outlook in the text exposition format.
//!
//! Every figure is one that the lookout has at hand, so a scrape waits for nothing. The README's table of metrics has the
//! same names, which a test holds it to. A figure that is not known is left out, and so is one of what there is not.
//!
//! Invariant: within one process no counter ever falls.

use std::{fs, time::Duration};

use cdp_core::{Timestamp, machine::FORMAT_VERSION};
use prometheus::{
    TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};
use qemu_hook::tap::{LATENCY_BOUNDS_US, LatencyCounts, TapCounts};
use rustix::time::{ClockId, clock_gettime};

use super::{Outlook, Sight};
use crate::engine::{machine::State, messages};

/// Writes an outlook as Prometheus reads it; `started` is when the daemon was.
pub(crate) fn text(seen: &Outlook, now: Timestamp, started: Timestamp) -> String {
    let mut page = Page::default();
    process(&mut page, started);
    daemon(&mut page, seen);
    machines(&mut page, seen, now);
    gaps(&mut page, seen, now);
    volumes(&mut page, seen);
    drills(&mut page, seen, now);
    let mut text = String::new();
    if let Err(error) = TextEncoder::new().encode_utf8(&page.0, &mut text) {
        tracing::error!(%error, "the metrics cannot be written");
    }
    text
}

/// Labels of a sample: name and value.
type Labels<'a> = &'a [(&'a str, &'a str)];

/// The families so far.
#[derive(Default)]
struct Page(Vec<MetricFamily>);

impl Page {
    /// Adds a family with its samples; none without samples.
    fn add(&mut self, kind: MetricType, name: &str, help: &str, samples: Vec<Metric>) {
        if samples.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(samples);
        self.0.push(family);
    }

    fn gauges(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = Metric>) {
        self.add(MetricType::GAUGE, name, help, samples.into_iter().collect());
    }

    fn counters(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = Metric>) {
        self.add(
            MetricType::COUNTER,
            name,
            help,
            samples.into_iter().collect(),
        );
    }
}

fn labelled(labels: Labels<'_>) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

fn gauge(labels: Labels<'_>, value: f64) -> Metric {
    let (mut metric, mut gauge) = (labelled(labels), Gauge::default());
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

fn counter(labels: Labels<'_>, value: f64) -> Metric {
    let (mut metric, mut counter) = (labelled(labels), Counter::default());
    counter.set_value(value);
    metric.set_counter(counter);
    metric
}

fn histogram(labels: Labels<'_>, counts: &LatencyCounts) -> Metric {
    let mut below = 0;
    let buckets = LATENCY_BOUNDS_US.iter().zip(&counts.counts);
    let buckets = buckets.map(|(bound_us, count)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound_us as f64 / 1e6);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(counts.requests());
    histogram.set_sample_sum(counts.total_ns as f64 / 1e9);
    let mut metric = labelled(labels);
    metric.set_histogram(histogram);
    metric
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// The daemon's process, by the names that all programs use.
fn process(page: &mut Page, started: Timestamp) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    page.counters(
        "process_cpu_seconds_total",
        "CPU time of the daemon, user and system.",
        [counter(&[], cpu)],
    );
    page.gauges(
        "process_resident_memory_bytes",
        "Memory of the daemon that is in RAM.",
        resident_bytes().map(|bytes| gauge(&[], bytes as f64)),
    );
    page.gauges(
        "process_start_time_seconds",
        "When the daemon started, since 1970.",
        [gauge(&[], started.as_nanos() as f64 / 1e9)],
    );
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

fn daemon(page: &mut Page, seen: &Outlook) {
    let format = FORMAT_VERSION.to_string();
    let build = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("format_version", format.as_str()),
    ];
    page.gauges(
        "virtcdp_build_info",
        "The daemon's version, and the version of the format it writes.",
        [gauge(&build, 1.0)],
    );
    let [views, takeovers, jobs, drills] = seen.in_use;
    for (name, help, count) in [
        ("virtcdp_views", "Open views.", views),
        ("virtcdp_takeovers", "Taken-over machines.", takeovers),
        ("virtcdp_jobs", "Exports and commits that run.", jobs),
        ("virtcdp_drills_running", "Drills that run.", drills),
    ] {
        page.gauges(name, help, [gauge(&[], count as f64)]);
    }
    page.gauges(
        "virtcdp_guard_up",
        "1 while there is a guard process.",
        [gauge(&[], f64::from(u8::from(seen.guarded)))],
    );
    page.counters(
        "virtcdp_guard_closings_total",
        "Taps that the guard closed because the daemon did not answer.",
        [counter(&[], seen.guard_closings as f64)],
    );
    let room = |of: fn(super::Free) -> u64| seen.room.map(|room| gauge(&[], of(room) as f64));
    page.gauges(
        "virtcdp_file_system_free_bytes",
        "What is free on the harbors' file system.",
        room(|room| room.space.free),
    );
    page.gauges(
        "virtcdp_file_system_size_bytes",
        "Size of the harbors' file system.",
        room(|room| room.space.total),
    );
    page.gauges(
        "virtcdp_file_system_reserve_bytes",
        "What of it is kept free; with less protection ends.",
        room(|room| room.reserve),
    );
    let alert = |alert: &super::Alert| {
        let labels = [
            ("key", alert.key),
            ("machine", alert.machine.as_str()),
            ("severity", alert.severity.name()),
        ];
        gauge(&labels, 1.0)
    };
    page.gauges(
        "virtcdp_alert",
        "1 for each alert that stands.",
        seen.alerts.iter().map(alert),
    );
    let outcomes = seen.webhook.map(|counts| {
        [
            ("delivered", counts.delivered),
            ("failed", counts.failed),
            ("dropped", counts.dropped),
        ]
    });
    let outcomes = outcomes.into_iter().flatten();
    let mail = seen.mail.map(|counts| {
        [
            ("delivered", counts.delivered),
            ("failed", counts.failed),
            ("dropped", counts.dropped),
        ]
    });
    page.counters(
        "virtcdp_mail_messages_total",
        "Mail of alerts: delivered, failed for good, or dropped because too much waited.",
        mail.into_iter()
            .flatten()
            .map(|(outcome, count)| counter(&[("outcome", outcome)], count as f64)),
    );
    page.counters(
        "virtcdp_webhook_messages_total",
        "Messages to the webhook: delivered, failed for good, or dropped because too many waited.",
        outcomes.map(|(outcome, count)| counter(&[("outcome", outcome)], count as f64)),
    );
}

/// What drills have proved.
fn drills(page: &mut Page, seen: &Outlook, now: Timestamp) {
    let proof = |machine: &Sight| machine.proof.clone();
    page.gauges(
        "virtcdp_newest_proven_point_age_seconds",
        "Age of the newest recovery point that a drill has proved.",
        each(seen, move |m| {
            let (_, time) = proof(m)?.proved?;
            Some(seconds(now.since(messages::timestamp(time))))
        }),
    );
    page.gauges(
        "virtcdp_last_drill_age_seconds",
        "Time since the last drill ended that said something.",
        each(seen, move |m| {
            let proof = proof(m)?;
            proof.last.as_ref()?;
            Some(seconds(now.since(messages::timestamp(proof.last_ns))))
        }),
    );
    page.gauges(
        "virtcdp_last_drill_proved",
        "1 if that drill proved the machine, 0 if it did not.",
        each(seen, move |m| {
            let (_, proved, _) = proof(m)?.last?;
            Some(f64::from(u8::from(proved)))
        }),
    );
    page.gauges(
        "virtcdp_last_drill_rto_seconds",
        "Time from the start to the last check passed, of the last drill that proved the machine.",
        each(seen, move |m| Some(proof(m)?.rto_ms? as f64 / 1000.0)),
    );
    let counts = seen.machines.iter().flat_map(|machine| {
        let (proved, failed) = machine.proof.as_ref().map_or((0, 0), |proof| proof.counts);
        [("proved", proved), ("failed", failed)].map(|(verdict, count)| {
            let labels = [("machine", machine.name.as_str()), ("verdict", verdict)];
            counter(&labels, count as f64)
        })
    });
    page.counters(
        "virtcdp_drills_total",
        "Drills that said something of the machine, as far as their reports are kept.",
        counts,
    );
    page.gauges(
        "virtcdp_drill_put_off_seconds",
        "How long a drill that is due has been put off; 0 if none is.",
        each(seen, |m| {
            let waits = m.put_off.as_ref().map(|(_, waits)| seconds(*waits));
            Some(waits.unwrap_or(0.0))
        }),
    );
}

/// A gauge of each machine that has it.
fn each<'a>(
    seen: &'a Outlook,
    value: impl Fn(&Sight) -> Option<f64> + 'a,
) -> impl Iterator<Item = Metric> + 'a {
    seen.machines.iter().filter_map(move |machine| {
        let value = value(machine)?;
        Some(gauge(&[("machine", &machine.name)], value))
    })
}

fn machines(page: &mut Page, seen: &Outlook, now: Timestamp) {
    let states = seen.machines.iter().flat_map(|machine| {
        State::ALL.map(|state| {
            let labels = [("machine", machine.name.as_str()), ("state", state.name())];
            gauge(&labels, f64::from(u8::from(machine.state == state)))
        })
    });
    page.gauges(
        "virtcdp_machine_state",
        "1 for the state that the machine is in, 0 for all others.",
        states,
    );
    page.gauges(
        "virtcdp_points",
        "Recovery points that can be viewed.",
        each(seen, |m| Some(m.points as f64)),
    );
    page.gauges(
        "virtcdp_newest_point_age_seconds",
        "Age of the newest recovery point; none is made while nothing is written.",
        each(seen, move |m| Some(seconds(now.since(m.newest?)))),
    );
    page.gauges(
        "virtcdp_unsynced_age_seconds",
        "Age of the oldest acknowledged write that is not on stable storage; 0 without one.",
        each(seen, |m| Some(seconds(m.recording?.unsynced_age))),
    );
    page.gauges(
        "virtcdp_base_point_age_seconds",
        "Age of the newest base point, of the volume whose is the oldest.",
        each(seen, move |m| Some(seconds(now.since(m.base?)))),
    );
    page.gauges(
        "virtcdp_scrub_age_seconds",
        "Time since the file of the harbor was verified that was not verified for longest.",
        each(seen, move |m| Some(seconds(now.since(m.verified?)))),
    );
    page.gauges(
        "virtcdp_journal_bytes",
        "What the journal takes, as it was measured last.",
        each(seen, |m| Some(m.sizes?.usage.journal_bytes as f64)),
    );
    page.gauges(
        "virtcdp_base_bytes",
        "What the base points take, as it was measured last.",
        each(seen, |m| Some(m.sizes?.usage.base_bytes as f64)),
    );
    page.gauges(
        "virtcdp_buffer_used_bytes",
        "What is in the IO buffer.",
        each(seen, |m| Some(m.recording?.buffer_used as f64)),
    );
    page.gauges(
        "virtcdp_buffer_limit_bytes",
        "Size of the IO buffer.",
        each(seen, |m| Some(m.recording?.buffer_limit as f64)),
    );
}

fn gaps(page: &mut Page, seen: &Outlook, now: Timestamp) {
    let by_reason = |value: fn(&super::tally::Tally) -> f64| {
        let of_machine = move |machine: &std::sync::Arc<Sight>| {
            let samples = machine.gaps.iter().map(|(reason, tally)| {
                let labels = [("machine", machine.name.as_str()), ("reason", reason)];
                counter(&labels, value(tally))
            });
            samples.collect::<Vec<_>>()
        };
        seen.machines.iter().flat_map(of_machine)
    };
    page.counters(
        "virtcdp_gaps_total",
        "Gaps, the open one among them.",
        by_reason(|tally| tally.gaps as f64),
    );
    page.counters(
        "virtcdp_gap_seconds_total",
        "Time in gaps, the open one as far as it has come.",
        by_reason(|tally| seconds(tally.time)),
    );
    page.gauges(
        "virtcdp_open_gap_seconds",
        "How long the machine has been in the gap it is in; 0 outside of gaps.",
        each(seen, move |m| {
            let open = m.open_gap.as_ref().map(|gap| now.since(gap.since));
            Some(open.map_or(0.0, seconds))
        }),
    );
}

fn volumes(page: &mut Page, seen: &Outlook) {
    let each_volume = |sample: fn(Labels<'_>, &TapCounts) -> Metric| {
        let of_machine = move |machine: &std::sync::Arc<Sight>| {
            let samples = machine.volumes.iter().map(|volume| {
                let labels = [
                    ("machine", machine.name.as_str()),
                    ("volume", volume.target.as_str()),
                ];
                sample(&labels, &volume.counts)
            });
            samples.collect::<Vec<_>>()
        };
        seen.machines.iter().flat_map(of_machine)
    };
    page.counters(
        "virtcdp_captured_writes_total",
        "Writes of the guest that were captured, zeroes among them.",
        each_volume(|labels, c| counter(labels, (c.writes + c.zeroes) as f64)),
    );
    page.counters(
        "virtcdp_captured_bytes_total",
        "Bytes of data that the guest wrote.",
        each_volume(|labels, c| counter(labels, c.bytes as f64)),
    );
    page.counters(
        "virtcdp_captured_zeroed_bytes_total",
        "Bytes that the guest zeroed without sending zeroes.",
        each_volume(|labels, c| counter(labels, c.zero_bytes as f64)),
    );
    page.counters(
        "virtcdp_bypass_closings_total",
        "Taps that were closed because a reply to the guest was overdue.",
        each_volume(|labels, c| counter(labels, c.overdue as f64)),
    );
    let latencies = each_volume(|labels, c| histogram(labels, &c.latency));
    page.add(
        MetricType::HISTOGRAM,
        "virtcdp_capture_latency_seconds",
        "Time from the receipt of a write at the tap to its reply.",
        latencies.collect(),
    );
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;
