#ifndef CARAVAN_WORKER_KV_REPLICATOR_H_
#define CARAVAN_WORKER_KV_REPLICATOR_H_

// Sends a stage's archived KV blocks on to another worker's archive, beside the steps: names wait
// in a queue, and what they name is read from the own archive when its turn comes. Also those that
// were only used are offered, so that they grow old there as they do here.

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/bounded_queue.h"
#include "base/mutex.h"
#include "base/named_thread.h"
#include "worker/kv_block_store.h"
#include "worker/kv_peer.h"

namespace caravan {

/// Thread-safe.
class KvReplicator {
 public:
  struct Counters {
    int64_t sent = 0;     // blocks
    int64_t bytes = 0;    // of their layers
    int64_t dropped = 0;  // blocks that were not offered, or not taken
  };

  KvReplicator(const KvFormat& format, const LayerRange& layers,
               std::shared_ptr<KvBlockStore> store, std::shared_ptr<KvPeer> to);
  /// What waits is not sent.
  ~KvReplicator();

  /// Never waits: where too many do already, this one is dropped.
  void Offer(const KvBlockName& name);

  Counters counters() const;

  /// Waits until all that was offered has been sent or dropped. For tests.
  void Flush();

 private:
  void Run();
  /// Offers the names, and sends those that are lacking.
  absl::Status Send(const std::vector<KvBlockName>& names);
  absl::Status SendBlock(const KvBlockName& name);
  /// Returns before `time` has passed where all ends.
  void Rest(absl::Duration time);

  const KvFormat format_;
  const LayerRange layers_;
  const std::shared_ptr<KvBlockStore> store_;
  const std::shared_ptr<KvPeer> to_;

  mutable Mutex mu_;
  CondVar changed_;
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  int64_t waiting_ ABSL_GUARDED_BY(mu_) = 0;  // offered, neither sent nor dropped
  Counters counters_ ABSL_GUARDED_BY(mu_);

  BoundedQueue<KvBlockName> queue_;  // own synchronisation
  NamedThread sender_;               // last: it uses the above
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_KV_REPLICATOR_H_
