#include "worker/kv_replicator.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace caravan {
namespace {

// Names are small; this is for prompts of 500,000 tokens that come at once.
constexpr size_t kWaitingNames = 8192;

// Asked about in one round trip.
constexpr size_t kOfferedNames = 64;

// After a failure, which mostly lasts.
constexpr absl::Duration kRetryDelay = absl::Seconds(5);

}  // namespace

KvReplicator::KvReplicator(const KvFormat& format, const LayerRange& layers,
                           std::shared_ptr<KvBlockStore> store, std::shared_ptr<KvPeer> to)
    : format_(format),
      layers_(layers),
      store_(std::move(store)),
      to_(std::move(to)),
      queue_(kWaitingNames),
      sender_("kv-replicas", [this] { Run(); }) {}

KvReplicator::~KvReplicator() {
  {
    MutexLock lock(&mu_);
    ending_ = true;
    changed_.SignalAll();
  }
  queue_.Close();
  to_->Cancel();
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

KvReplicator::Counters KvReplicator::counters() const {
  MutexLock lock(&mu_);
  return counters_;
}

void KvReplicator::Flush() {
  MutexLock lock(&mu_);
  while (waiting_ > 0) changed_.Wait(&mu_);
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
  bool warned = false;
  while (std::optional<KvBlockName> name = queue_.Pop()) {
    if (queue_.closed()) return;
    std::vector<KvBlockName> names;
    for (; name.has_value(); name = queue_.PopWithTimeout(absl::ZeroDuration())) {
      names.push_back(*name);
      if (names.size() == kOfferedNames) break;
    }
    const absl::Status sent = Send(names);
    {
      MutexLock lock(&mu_);
      waiting_ -= static_cast<int64_t>(names.size());
      changed_.SignalAll();
      if (ending_) return;
    }
    if (absl::IsCancelled(sent)) return;
    if (sent.ok()) {
      warned = false;
      continue;
    }
    if (!warned) LogWarning("kv_not_replicated", {{"why", sent.message()}});
    warned = true;
    Rest(kRetryDelay);
  }
}

absl::Status KvReplicator::Send(const std::vector<KvBlockName>& names) {
  const absl::StatusOr<std::vector<KvBlockName>> answer =
      to_->Offer(format_, layers_, names, KvCallTimeout(0));
  if (!answer.ok()) {
    MutexLock lock(&mu_);
    counters_.dropped += static_cast<int64_t>(names.size());
    return answer.status();
  }
  // Whatever it answers: what was offered, and each once.
  std::vector<KvBlockName> lacking;
  for (const KvBlockName& name : *answer) {
    if (std::find(names.begin(), names.end(), name) != names.end() &&
        std::find(lacking.begin(), lacking.end(), name) == lacking.end()) {
      lacking.push_back(name);
    }
  }
  for (size_t i = 0; i < lacking.size(); ++i) {
    if (queue_.closed()) return absl::OkStatus();
    const absl::Duration begin = SteadyClock().Now();
    const absl::Status sent = SendBlock(lacking[i]);
    if (absl::IsNotFound(sent)) continue;  // it had to make room meanwhile
    if (!sent.ok()) {
      MutexLock lock(&mu_);
      counters_.dropped += static_cast<int64_t>(lacking.size() - i);
      return sent;
    }
    // Half of the time the link, and the other box, are the steps' alone.
    Rest(SteadyClock().Now() - begin);
  }
  return absl::OkStatus();
}

absl::Status KvReplicator::SendBlock(const KvBlockName& name) {
  const auto layer_bytes = static_cast<size_t>(format_.layer_bytes());
  std::vector<std::byte> layers(static_cast<size_t>(layers_.num) * layer_bytes);
  CARAVAN_RETURN_IF_ERROR(
      store_->Read(format_, {name, layers_}, [&](int layer, absl::Span<const std::byte> bytes) {
        std::memcpy(layers.data() + static_cast<size_t>(layer) * layer_bytes, bytes.data(),
                    bytes.size());
        return absl::OkStatus();
      }));
  CARAVAN_RETURN_IF_ERROR(
      to_->Put(format_, {name, layers_}, layers, KvCallTimeout(std::ssize(layers))));
  MutexLock lock(&mu_);
  ++counters_.sent;
  counters_.bytes += std::ssize(layers);
  return absl::OkStatus();
}

}  // namespace caravan
