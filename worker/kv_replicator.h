#ifndef CARAVAN_WORKER_KV_REPLICATOR_H_
#define CARAVAN_WORKER_KV_REPLICATOR_H_

// Sends a stage's archived KV blocks on to another worker's archive, beside the steps: names wait
// in a queue, and what they name is read from the own archive when its turn comes. Also those that
// were only used are offered, so that they grow old there as they do here.
//
// What was in the own archive before is offered too, when nothing waits: what was used last comes
// first, as it is what will most likely be wanted, and then all is offered once more in the order
// of its use, so that it goes there in that order.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/bounded_queue.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "worker/kv_block_store.h"
#include "worker/kv_peer.h"

namespace caravan {

/// Thread-safe.
class KvReplicator {
 public:
  struct Options {
    KvFormat format;
    LayerRange layers;  // of each block
    std::shared_ptr<KvBlockStore> store;
    std::shared_ptr<KvPeer> to;
    // So many blocks the other has room for; of those that are there before, no more are sent.
    int64_t room_blocks = 0;
    absl::Duration retry_delay = absl::Seconds(5);  // after a failure, which mostly lasts
    /// refused() has become true. Called by the sending thread, without a lock.
    std::function<void()> on_refused = [] {};
  };
  struct Counters {
    int64_t sent = 0;     // blocks
    int64_t bytes = 0;    // of their layers
    int64_t dropped = 0;  // blocks that were not offered, or not taken

    Counters& operator+=(const Counters& other);
  };

  explicit KvReplicator(Options options);
  ~KvReplicator() { Stop(); }

  const std::shared_ptr<KvPeer>& to() const { return options_.to; }

  /// Never waits: where too many do already, this one is dropped.
  void Offer(const KvBlockName& name);

  /// Ends all calls to the other, whoever makes them, and the thread. What waits is not sent, and
  /// what is offered later is dropped. Idempotent; by one thread at a time.
  void Stop();

  /// The other does not take what it is sent: it has no room, or two calls failed since it last
  /// took a block. Until it takes another; that it lacks nothing shows nothing.
  bool refused() const;

  Counters counters() const;

  /// Waits until all that was offered, or there before, has been sent or dropped. For tests.
  void Flush();

 private:
  void Run();
  /// What has come into the queue since; with a failure it is dropped.
  absl::Status SendNew(const KvBlockName& first);
  /// The next few of the earlier ones. Gives way, to be called again, to what is offered meanwhile.
  absl::Status SendEarlier();
  /// Of `names`, those that the other lacks, each once and in their order.
  absl::StatusOr<std::vector<KvBlockName>> AskWhatLacks(absl::Span<const KvBlockName> names);
  /// OK also where it is not there any more. Takes `share` of the time at most.
  absl::Status SendBlock(const KvBlockName& name, double share);
  void NoteFailure(const absl::Status& sent);
  /// Returns before `time` has passed where all ends.
  void Rest(absl::Duration time);

  const Options options_;
  // Of the sending thread:
  std::vector<KvBlockName> earlier_;  // the least recently used first
  size_t unsent_ = 0;                 // so many of those, the first, are still to be sent
  size_t reordered_ = 0;              // so many, the first, were offered in their order
  int failures_ = 0;                  // since it last took a block

  mutable Mutex mu_;
  CondVar changed_;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  bool refused_ ABSL_GUARDED_BY(mu_) = false;
  int64_t waiting_ ABSL_GUARDED_BY(mu_) = 0;  // offered, neither sent nor dropped
  bool earlier_is_done_ ABSL_GUARDED_BY(mu_);
  Counters counters_ ABSL_GUARDED_BY(mu_);

  BoundedQueue<KvBlockName> queue_;  // own synchronisation
  NamedThread sender_;               // last: it uses the above
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_REPLICATOR_H_
