#ifndef CARAVAN_WORKER_SESSION_H_
#define CARAVAN_WORKER_SESSION_H_

// One life of a worker in a cluster, from joining to leaving: its server for the hop before, its
// link to the coordinator, and the Worker between them.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/dtype.h"
#include "cluster/transport_security.h"
#include "worker/compute_device.h"
#include "worker/experts/expert_store.h"
#include "worker/files/model_cache.h"
#include "worker/kv_block_store.h"

namespace caravan {

struct WorkerSessionOptions {
  std::string coordinator;  // HOST:PORT
  std::string listen =
      "127.0.0.1:0";           // HOST:PORT for the neighbours' activations; port 0: any free one
  std::string advertise;       // HOST:PORT that neighbours dial; empty: the host that the
                               // coordinator sees, and the port listened on
  TransportSecurity security;  // of both
  std::string name;            // for people
  std::string machine;         // Registration.machine
  std::vector<std::string> trusted_networks;  // Registration.trusted_networks
  std::string model_directory;  // a local copy of the model; empty: the coordinator's directory if
                                // it is here too, else its files over the network
  std::vector<std::string> mirrors;  // directories on other disks with files of that local copy,
                                     // which is a packed model then (PackedModel::Open)
  // Where files of a packed model are fetched to without a local copy; null: its tensors are read
  // over the network into memory, and kept nowhere.
  std::shared_ptr<ModelCache> model_cache;
  double share_files = 0.05;  // ServingShare::Options::share, of files given and of files taken
  int64_t memory_budget_bytes = 0;         // of the host
  bool offloads = false;                   // experts that do not fit it may stay in a local pack
  DType kv_dtype = DType::kF32;            // of the KV cache
  int64_t kv_disk_bytes = 0;               // for KV blocks beyond what memory holds
  std::string kv_disk_directory;           // where they lie
  std::shared_ptr<KvBlockStore> kv_store;  // of full KV blocks, which outlive the session; null:
                                           // there is none
  bool kv_replicates = false;              // those that are kept go to another worker's too
  ExpertStore::Options experts;            // of those on disk
  std::optional<std::string> expert_heat = "";  // as Stage::Options
  std::string record_routing;                   // as Worker::Environment
  std::string box;                              // Registration.box
  int num_threads = 1;
  absl::Duration connect_timeout = absl::Seconds(60);
  std::shared_ptr<const ComputeDevice> device;
  std::shared_ptr<const CardTransport> card_transport;  // as Worker::Environment
  bool requires_card_transport = false;
  std::function<void(int64_t loaded_bytes, int64_t total_bytes)> show_progress;
};

/// Joins, serves until `stop` is requested or the coordinator ends it, and leaves nothing behind.
/// Returns OK after `stop`.
/// Errors: InvalidArgument - an address that cannot be listened on, or a registration refused;
///         FailedPrecondition - as ExplainNoConnection, or the coordinator is of
///         another version or has another model; Unauthenticated, PermissionDenied - an end does
///         not accept the other's certificate; DeadlineExceeded - no coordinator within
///         connect_timeout. Unavailable - it went away; Aborted, Cancelled - it took this worker
///         for dead: the caller may join anew. Internal - the card failed for good: only a new
///         process can use it.
absl::Status RunWorkerSession(const WorkerSessionOptions& options, std::stop_token stop);

}  // namespace caravan

#endif  // CARAVAN_WORKER_SESSION_H_
