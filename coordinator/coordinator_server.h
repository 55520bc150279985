#ifndef CARAVAN_COORDINATOR_COORDINATOR_SERVER_H_
#define CARAVAN_COORDINATOR_COORDINATOR_SERVER_H_

// The coordinator's process: model directory, controller, driver and services behind one port.
// Holds the text side of the model; never touches weights or activations.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/plan_aim.h"
#include "cluster/transport_security.h"

namespace caravan {

struct CoordinatorOptions {
  std::string model_directory;
  std::string tokenizer_directory;  // of the text side's files; empty: model_directory
  std::string model_name;           // what clients of the HTTP API call it; empty: the directory's
  std::string listen = "127.0.0.1:7070";  // HOST:PORT; port 0: any free one
  TransportSecurity security;             // of the gRPC port
  std::string http_listen;                // the same, for HTTP; empty: none is served
  std::string api_key_file;               // empty: HTTP without keys, on loopback only
  std::string state = "caravan.db";       // the database of files and batches; made if need be
  int min_workers = 1;                    // the first plan waits for this many
  int64_t kv_tokens = 0;       // all sequences together; 0: kDefaultContexts longest ones
  int64_t context_tokens = 0;  // longest prompt with its reply; 0: as the model allows
  int64_t prefill_chunk = 512;
  int64_t max_queued_jobs = 1024;
  double share_files = 0.05;     // ServingShare::Options::share
  PlanAim aim = PlanAim::kBulk;  // of plans by times (cluster/planner.h)
  bool speculate = false;        // the model's layer of multi-token prediction drafts
  absl::Duration worker_timeout = absl::Seconds(60);    // how long a job waits for a pipeline
  absl::Duration heartbeat_timeout = absl::Seconds(5);  // two heartbeats: a silent worker is lost
  absl::Duration rejoin_delay = absl::Seconds(30);      // as RejoinBackoff
};

/// Serves from Start until Stop.
class CoordinatorServer {
 public:
  /// With certificates and their authority's key in security.tls->directory(), it hands out further
  /// ones for join tokens.
  /// Errors: InvalidArgument, NotFound - the model directory, the file of keys or an option;
  ///         FailedPrecondition - as CheckListen; PermissionDenied - others may read the
  ///         authority's key; InvalidArgument - an address that cannot be listened on; as
  ///         JobStore::Open - the database. Each names what.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(CoordinatorOptions options);
  virtual ~CoordinatorServer() = default;

  /// HOST:PORT that is listened on.
  virtual std::string address() const = 0;
  /// The same for HTTP; empty when none is served.
  virtual std::string http_address() const = 0;

  /// Batches stop where they are, to be gone on with by the next coordinator of the same state.
  /// Other jobs end with Unavailable, workers are dismissed, the port is closed. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_COORDINATOR_SERVER_H_
