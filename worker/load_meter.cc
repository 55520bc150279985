#include "worker/load_meter.h"

namespace caravan {

void LoadMeter::BeginStep() {
  const absl::Duration now = clock_.Now();
  MutexLock lock(&mu_);
  in_step_ = true;
  step_start_ = now;
}

void LoadMeter::EndStep(int64_t rows) {
  const absl::Duration now = clock_.Now();
  MutexLock lock(&mu_);
  in_step_ = false;
  busy_ += now - step_start_;
  ++steps_;
  rows_ += rows;
}

v1::WorkerLoad LoadMeter::Read() const {
  v1::WorkerLoad load;
  MutexLock lock(&mu_);
  // Under the lock, so that the step in work did not begin later.
  const absl::Duration now = clock_.Now();
  load.set_total_s(absl::ToDoubleSeconds(now - start_));
  load.set_busy_s(
      absl::ToDoubleSeconds(busy_ + (in_step_ ? now - step_start_ : absl::ZeroDuration())));
  load.set_steps(static_cast<uint64_t>(steps_));
  load.set_rows(static_cast<uint64_t>(rows_));
  return load;
}

void AddLoad(const v1::WorkerLoad& load, v1::WorkerLoad& sum) {
  sum.set_busy_s(sum.busy_s() + load.busy_s());
  sum.set_total_s(sum.total_s() + load.total_s());
  sum.set_steps(sum.steps() + load.steps());
  sum.set_rows(sum.rows() + load.rows());
  if (load.has_kv_archive()) {
    const v1::KvArchiveLoad& more = load.kv_archive();
    v1::KvArchiveLoad& archive = *sum.mutable_kv_archive();
    archive.set_kept(archive.kept() + more.kept());
    archive.set_restored_from_disk(archive.restored_from_disk() + more.restored_from_disk());
    archive.set_restored_from_peers(archive.restored_from_peers() + more.restored_from_peers());
    archive.set_replicas_sent(archive.replicas_sent() + more.replicas_sent());
    archive.set_replica_bytes(archive.replica_bytes() + more.replica_bytes());
    archive.set_replicas_dropped(archive.replicas_dropped() + more.replicas_dropped());
  }
  if (load.has_card_experts()) {
    const v1::CardExpertLoad& more = load.card_experts();
    v1::CardExpertLoad& on_card = *sum.mutable_card_experts();
    on_card.set_hits(on_card.hits() + more.hits());
    on_card.set_copies(on_card.copies() + more.copies());
    on_card.set_on_cpu(on_card.on_cpu() + more.on_cpu());
    on_card.set_promotions(on_card.promotions() + more.promotions());
    on_card.set_copied_bytes(on_card.copied_bytes() + more.copied_bytes());
  }
  if (!load.has_experts()) return;
  const v1::ExpertLoad& more = load.experts();
  v1::ExpertLoad& experts = *sum.mutable_experts();
  experts.set_hits(experts.hits() + more.hits());
  experts.set_misses(experts.misses() + more.misses());
  experts.set_reads(experts.reads() + more.reads());
  experts.set_read_bytes(experts.read_bytes() + more.read_bytes());
  experts.set_evictions(experts.evictions() + more.evictions());
  experts.set_guesses_used(experts.guesses_used() + more.guesses_used());
  experts.set_guesses_wasted(experts.guesses_wasted() + more.guesses_wasted());
  experts.set_waited_s(experts.waited_s() + more.waited_s());
  experts.set_guesses(experts.guesses() + more.guesses());
  experts.set_guessable(experts.guessable() + more.guessable());
  experts.set_wasted_bytes(experts.wasted_bytes() + more.wasted_bytes());
  experts.set_failovers(experts.failovers() + more.failovers());
}

}  // namespace caravan
