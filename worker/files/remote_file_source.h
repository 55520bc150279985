#ifndef CARAVAN_WORKER_FILES_REMOTE_FILE_SOURCE_H_
#define CARAVAN_WORKER_FILES_REMOTE_FILE_SOURCE_H_

// A coordinator or worker that serves PackFiles, over the network.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "caravan/v1/model_files.grpc.pb.h"
#include "cluster/part_stream.h"
#include "cluster/peer_address.h"
#include "cluster/serving_share.h"
#include "cluster/transport_security.h"
#include "worker/files/file_source.h"

namespace caravan {

class RemoteFileSource final : public FileSource {
 public:
  struct Options {
    PeerAddress peer;
    TransportSecurity security;
    uint64_t fingerprint = 0;  // of the model
    absl::Duration list_timeout = absl::Seconds(10);
    // A source that hangs for so long in the midst of a read ends it with DeadlineExceeded.
    absl::Duration part_timeout = kPartTimeout;
    // What this process gives to taking files in while its own stage runs steps. Borrowed.
    ServingShare* share = nullptr;
  };

  explicit RemoteFileSource(Options options);

  const std::string& name() const override { return options_.peer.name; }
  absl::StatusOr<std::vector<OfferedFile>> List(const std::stop_token& stop) override;
  absl::StatusOr<absl::Duration> Read(const std::string& file, int64_t offset, int64_t size,
                                      FileSink sink, const std::stop_token& stop) override;

 private:
  const Options options_;
  const std::unique_ptr<v1::PackFiles::Stub> stub_;
};

}  // namespace caravan

#endif  // CARAVAN_WORKER_FILES_REMOTE_FILE_SOURCE_H_
