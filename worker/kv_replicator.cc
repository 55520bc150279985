#include "worker/kv_replicator.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// Names are small; this is for prompts of 500,000 tokens that come at once.
constexpr size_t kWaitingNames = 8192;

// Asked about in one round trip.
constexpr size_t kOfferedNames = 64;

// Of the time, what sending takes of the link and of the other box: what is new is wanted there
// soon, the rest has time.
constexpr double kShareOfNew = 0.5;
constexpr double kShareOfEarlier = 0.25;

// Of the other's room, what is left to blocks that come meanwhile.
constexpr int64_t kSlack = 8;

// One that does not answer may have been busy, or it is this box that was; twice it is away.
constexpr int kFailuresOfOneAway = 2;

/// Blocks of which the store has all `layers`, the least recently used first; the latest `limit`.
std::vector<KvBlockName> WholeBlocks(const KvBlockStore& store, const KvFormat& format,
                                     const LayerRange& layers, int64_t limit) {
  absl::flat_hash_map<KvBlockName, std::vector<LayerRange>> there;
  std::vector<KvBlockName> names;  // in the order of their latest use
  const std::vector<ListedKvPart> parts = store.List(format, layers, SIZE_MAX);
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    std::vector<LayerRange>& ranges = there[part->part.name];
    if (ranges.empty()) names.push_back(part->part.name);
    ranges.push_back(part->part.layers);
  }
  std::erase_if(names,
                [&](const KvBlockName& name) { return !Without(layers, there[name]).empty(); });
  if (std::ssize(names) > limit) names.resize(static_cast<size_t>(limit));
  std::reverse(names.begin(), names.end());
  return names;
}

/// Whether another try would end likewise.
bool IsRefusal(const absl::Status& status) {
  return absl::IsResourceExhausted(status) || absl::IsInvalidArgument(status) ||
         absl::IsDataLoss(status);
}

}  // namespace

KvReplicator::Counters& KvReplicator::Counters::operator+=(const Counters& other) {
  sent += other.sent;
  bytes += other.bytes;
  dropped += other.dropped;
  return *this;
}

KvReplicator::KvReplicator(Options options)
    : options_(std::move(options)),
      earlier_is_done_(options_.room_blocks <= 0),
      queue_(kWaitingNames),
      sender_("kv-replicas", [this] { Run(); }) {}

void KvReplicator::Stop() {
  {
    MutexLock lock(&mu_);
    ending_ = true;
    changed_.SignalAll();
  }
  queue_.Close();
  options_.to->Cancel();
  sender_.Join();
}

void KvReplicator::Offer(const KvBlockName& name) {
  {
    MutexLock lock(&mu_);
    ++waiting_;
  }
  if (queue_.TryPush(name)) return;
  MutexLock lock(&mu_);
  --waiting_;
  ++counters_.dropped;
  changed_.SignalAll();
}

bool KvReplicator::refused() const {
  MutexLock lock(&mu_);
  return refused_;
}

KvReplicator::Counters KvReplicator::counters() const {
  MutexLock lock(&mu_);
  return counters_;
}

void KvReplicator::Flush() {
  MutexLock lock(&mu_);
  while (waiting_ > 0 || !earlier_is_done_) changed_.Wait(&mu_);
}

void KvReplicator::Rest(absl::Duration time) {
  const absl::Duration deadline = SteadyClock().Now() + time;
  MutexLock lock(&mu_);
  while (!ending_) {
    const absl::Duration left = deadline - SteadyClock().Now();
    if (left <= absl::ZeroDuration()) return;
    changed_.WaitWithTimeout(&mu_, left);
  }
}

void KvReplicator::Run() {
  if (options_.room_blocks > 0) {
    // Here, so that it comes after all that was offered to the one before this, and to nobody.
    earlier_ = WholeBlocks(*options_.store, options_.format, options_.layers,
                           options_.room_blocks - options_.room_blocks / kSlack);
    unsent_ = earlier_.size();
    MutexLock lock(&mu_);
    earlier_is_done_ = earlier_.empty();
    changed_.SignalAll();
  }
  while (true) {
    const bool idle = reordered_ == earlier_.size();
    const std::optional<KvBlockName> name =
        queue_.PopWithTimeout(idle ? absl::InfiniteDuration() : absl::ZeroDuration());
    if (queue_.closed()) return;
    const absl::Status sent = name.has_value() ? SendNew(*name) : SendEarlier();
    if (queue_.closed()) return;
    if (sent.ok()) continue;
    NoteFailure(sent);
    Rest(options_.retry_delay);
  }
}

void KvReplicator::NoteFailure(const absl::Status& sent) {
  if (++failures_ == 1) LogWarning("kv_not_replicated", {{"why", sent.message()}});
  if (!IsRefusal(sent) && failures_ < kFailuresOfOneAway) return;
  {
    MutexLock lock(&mu_);
    if (std::exchange(refused_, true)) return;
  }
  options_.on_refused();
}

absl::Status KvReplicator::SendNew(const KvBlockName& first) {
  std::vector<KvBlockName> names = {first};
  while (names.size() < kOfferedNames) {
    const std::optional<KvBlockName> name = queue_.PopWithTimeout(absl::ZeroDuration());
    if (!name.has_value()) break;
    names.push_back(*name);
  }
  const absl::StatusOr<std::vector<KvBlockName>> lacking = AskWhatLacks(names);
  absl::Status sent = lacking.status();
  int64_t dropped = sent.ok() ? 0 : std::ssize(names);
  for (size_t i = 0; sent.ok() && i < lacking->size() && !queue_.closed(); ++i) {
    sent = SendBlock((*lacking)[i], kShareOfNew);
    if (!sent.ok()) dropped = static_cast<int64_t>(lacking->size() - i);
  }
  MutexLock lock(&mu_);
  counters_.dropped += dropped;
  waiting_ -= std::ssize(names);
  changed_.SignalAll();
  return sent;
}

absl::Status KvReplicator::SendEarlier() {
  if (unsent_ > 0) {
    const size_t begin = unsent_ - std::min(unsent_, kOfferedNames);
    std::vector<KvBlockName> names(earlier_.begin() + static_cast<ptrdiff_t>(begin),
                                   earlier_.begin() + static_cast<ptrdiff_t>(unsent_));
    std::reverse(names.begin(), names.end());
    CARAVAN_ASSIGN_OR_RETURN(const std::vector<KvBlockName> lacking, AskWhatLacks(names));
    for (const KvBlockName& name : lacking) {
      CARAVAN_RETURN_IF_ERROR(SendBlock(name, kShareOfEarlier));
      MutexLock lock(&mu_);
      if (waiting_ > 0 || ending_) return absl::OkStatus();
    }
    unsent_ = begin;
    return absl::OkStatus();
  }
  const size_t end = std::min(earlier_.size(), reordered_ + kOfferedNames);
  CARAVAN_RETURN_IF_ERROR(
      AskWhatLacks(absl::MakeConstSpan(earlier_).subspan(reordered_, end - reordered_)).status());
  reordered_ = end;
  if (reordered_ < earlier_.size()) return absl::OkStatus();
  MutexLock lock(&mu_);
  earlier_is_done_ = true;
  changed_.SignalAll();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<KvBlockName>> KvReplicator::AskWhatLacks(
    absl::Span<const KvBlockName> names) {
  CARAVAN_ASSIGN_OR_RETURN(
      const std::vector<KvBlockName> answer,
      options_.to->Offer(options_.format, options_.layers, names, KvCallTimeout(0)));
  // Whatever it answers: what was offered, and each once.
  absl::flat_hash_set<KvBlockName> lacks(answer.begin(), answer.end());
  std::vector<KvBlockName> lacking;
  for (const KvBlockName& name : names) {
    if (lacks.erase(name) > 0) lacking.push_back(name);
  }
  return lacking;
}

absl::Status KvReplicator::SendBlock(const KvBlockName& name, double share) {
  const absl::Duration begin = SteadyClock().Now();
  const KvBlockPart part = {name, options_.layers};
  std::vector<std::byte> layers;
  const absl::Status read = options_.store->ReadWhole(options_.format, part, layers);
  if (absl::IsNotFound(read)) return absl::OkStatus();  // it had to make room meanwhile
  CARAVAN_RETURN_IF_ERROR(read);
  CARAVAN_RETURN_IF_ERROR(
      options_.to->Put(options_.format, part, layers, KvCallTimeout(std::ssize(layers))));
  failures_ = 0;
  {
    MutexLock lock(&mu_);
    refused_ = false;
    ++counters_.sent;
    counters_.bytes += std::ssize(layers);
  }
  // The rest of the time the link, and the other box, are the steps' alone.
  Rest((SteadyClock().Now() - begin) * (1 / share - 1));
  return absl::OkStatus();
}

}  // namespace caravan
