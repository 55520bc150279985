#include "worker/step_loop.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "worker/step_check.h"

namespace caravan {
namespace {

absl::Status ErrorOf(const v1::Step& step) {
  return absl::Status(static_cast<absl::StatusCode>(step.error().code()), step.error().message());
}

}  // namespace

StepLoop::StepLoop(uint64_t plan_version, std::unique_ptr<Stage> stage,
                   std::unique_ptr<ActivationChannel> next,
                   std::function<void(const absl::Status&)> on_broken, HopLinks links,
                   std::function<void(const absl::Status&)> on_card_lost,
                   std::function<void(const absl::Status&)> on_data_lost)
    : plan_version_(plan_version),
      stage_(std::move(stage)),
      next_(std::move(next)),
      on_broken_(std::move(on_broken)),
      on_card_lost_(std::move(on_card_lost)),
      on_data_lost_(std::move(on_data_lost)),
      links_(std::move(links)),
      queue_(kQueuedSteps),
      outgoing_(kQueuedSteps),
      meter_(SteadyClock()),
      thread_("step-loop", [this] {
        Run();
        stage_->Finish();
      }) {
  if (links_.next != nullptr) sender_.emplace("hop-sender", [this] { SendByLink(); });
}

StepLoop::~StepLoop() { Stop(); }

void StepLoop::Stop() {
  queue_.Close();
  outgoing_.Close();
  stage_->slots().Close();
  stage_->StopFetching();
  if (links_.previous != nullptr) links_.previous->Abort();
  if (links_.next != nullptr) links_.next->Abort();
  next_->Close();
  thread_.Join();
  if (sender_.has_value()) sender_->Join();
}

v1::KvArchiveNews StepLoop::kv_archive_news() const {
  v1::KvArchiveNews news;
  if (stage_->kv_archive() == nullptr) return news;
  const KvArchive::News of_stage = stage_->kv_archive()->news();
  news.set_plan_version(plan_version_);
  news.set_capacity(static_cast<uint64_t>(of_stage.capacity));
  news.set_refused_by(of_stage.refused_by);
  return news;
}

v1::WorkerLoad StepLoop::load() const {
  v1::WorkerLoad load = meter_.Read();
  if (stage_->kv_archive() != nullptr) {
    const KvArchive::Counters counters = stage_->kv_archive()->counters();
    v1::KvArchiveLoad& archive = *load.mutable_kv_archive();
    archive.set_kept(static_cast<uint64_t>(counters.kept));
    archive.set_restored_from_disk(static_cast<uint64_t>(counters.restored_from_disk));
    archive.set_restored_from_peers(static_cast<uint64_t>(counters.restored_from_peers));
    archive.set_replicas_sent(static_cast<uint64_t>(counters.replicas.sent));
    archive.set_replica_bytes(static_cast<uint64_t>(counters.replicas.bytes));
    archive.set_replicas_dropped(static_cast<uint64_t>(counters.replicas.dropped));
  }
  if (stage_->card_experts() != nullptr) {
    const CardExperts::Counters counters = stage_->card_experts()->counters();
    v1::CardExpertLoad& on_card = *load.mutable_card_experts();
    on_card.set_hits(static_cast<uint64_t>(counters.hits));
    on_card.set_copies(static_cast<uint64_t>(counters.copies));
    on_card.set_on_cpu(static_cast<uint64_t>(counters.on_cpu));
    on_card.set_promotions(static_cast<uint64_t>(counters.promotions));
    on_card.set_copied_bytes(static_cast<uint64_t>(counters.copied_bytes));
  }
  if (stage_->experts() == nullptr) return load;
  const ExpertStore::Counters counters = stage_->experts()->counters();
  v1::ExpertLoad& experts = *load.mutable_experts();
  experts.set_hits(static_cast<uint64_t>(counters.hits));
  experts.set_misses(static_cast<uint64_t>(counters.misses));
  experts.set_reads(static_cast<uint64_t>(counters.reads));
  experts.set_read_bytes(static_cast<uint64_t>(counters.bytes_read));
  experts.set_evictions(static_cast<uint64_t>(counters.evictions));
  experts.set_guesses_used(static_cast<uint64_t>(counters.guesses_used));
  experts.set_guesses_wasted(static_cast<uint64_t>(counters.guesses_wasted));
  experts.set_waited_s(absl::ToDoubleSeconds(counters.waited));
  experts.set_guesses(static_cast<uint64_t>(counters.guesses));
  experts.set_guessable(static_cast<uint64_t>(counters.guessable));
  experts.set_wasted_bytes(static_cast<uint64_t>(counters.bytes_wasted));
  experts.set_failovers(static_cast<uint64_t>(counters.failovers));
  return load;
}

absl::Status StepLoop::Receive(v1::Step step) {
  if (step.plan_version() != plan_version_) {
    return absl::AbortedError(absl::StrCat("a step of plan ", step.plan_version(),
                                           " came to a stage of plan ", plan_version_));
  }
  MutexLock lock(&intake_mu_);
  if (step.step_id() <= last_step_id_) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", step.step_id(), " came after step ", last_step_id_));
  }
  last_step_id_ = step.step_id();
  absl::StatusOr<HopStep> taken = TakeIn(std::move(step));
  // Whatever it was that failed, it failed of that.
  if (queue_.closed()) return absl::UnavailableError("the stage is ending");
  if (!taken.ok()) return taken.status();
  if (!queue_.Push(*std::move(taken))) return absl::UnavailableError("the stage is ending");
  return absl::OkStatus();
}

absl::StatusOr<HopStep> StepLoop::TakeIn(v1::Step step) {
  HopStep in{std::move(step), Array()};
  const int64_t num_rows = CountRows(in.step);
  const bool by_link = in.step.activations_by_nccl();
  if (by_link && (links_.previous == nullptr || in.step.has_error() || num_rows == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("step ", in.step.step_id(), ": says that activations come by NCCL, on a hop ",
                     links_.previous == nullptr ? "without it" : "where it has none"));
  }
  // The loop takes the slot where they all come without: here those behind must leave it one.
  if (links_.previous == nullptr || in.step.has_error() || num_rows == 0) return in;
  std::optional<Array> slot = stage_->slots().Take();
  if (!slot.has_value()) return absl::UnavailableError("the stage is ending");
  in.hidden = *std::move(slot);
  if (!by_link) return in;
  const int64_t bytes = stage_->HiddenBytes(num_rows);
  if (bytes > in.hidden.bytes()) {
    return absl::InvalidArgumentError(absl::StrCat("step ", in.step.step_id(), ": activations of ",
                                                   num_rows, " rows come by NCCL, more than fit"));
  }
  CARAVAN_RETURN_IF_ERROR(Annotate(links_.previous->Receive(in.hidden.data(), bytes),
                                   absl::StrCat("activations of step ", in.step.step_id())));
  return in;
}

void StepLoop::Run() {
  while (std::optional<HopStep> step = queue_.Pop()) {
    if (queue_.closed()) return;
    if (links_.previous == nullptr) {
      std::optional<Array> slot = stage_->slots().Take();
      if (!slot.has_value()) return;
      step->hidden = *std::move(slot);
    }
    const bool failed_before = step->step.has_error();
    meter_.BeginStep();
    HopStep done = stage_->Run(*std::move(step));
    meter_.EndStep(done.step.has_error() ? 0 : CountRows(done.step));
    const absl::Status lost = stage_->card_is_lost() ? ErrorOf(done.step) : absl::OkStatus();
    if (!failed_before && absl::IsDataLoss(ErrorOf(done.step)) && on_data_lost_) {
      on_data_lost_(ErrorOf(done.step));
    }
    if (!Send(std::move(done)).ok()) return;
    if (!lost.ok()) return Break(lost, on_card_lost_);
    stage_->AfterStep();
  }
}

absl::Status StepLoop::Send(HopStep done) {
  if (links_.next != nullptr) {
    if (outgoing_.Push(std::move(done))) return absl::OkStatus();
    return absl::UnavailableError("the stage is ending");
  }
  absl::Status sent = next_->Send(std::move(done.step));
  if (!sent.ok()) Break(sent, on_broken_);
  return sent;
}

void StepLoop::SendByLink() {
  while (std::optional<HopStep> done = outgoing_.Pop()) {
    if (outgoing_.closed()) return;
    const bool by_link = done->step.activations_by_nccl();
    const int64_t bytes = stage_->HiddenBytes(CountRows(done->step));
    absl::Status sent = next_->Send(std::move(done->step));
    if (sent.ok() && by_link) sent = links_.next->Send(done->hidden.data(), bytes);
    if (sent.ok()) continue;
    Break(sent, on_broken_);
    return;
  }
}

void StepLoop::Break(const absl::Status& why,
                     const std::function<void(const absl::Status&)>& tell) {
  const bool ending = queue_.closed();
  queue_.Close();
  outgoing_.Close();
  stage_->slots().Close();
  if (!ending && tell) tell(why);
}

}  // namespace caravan
