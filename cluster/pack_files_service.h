#ifndef CARAVAN_CLUSTER_PACK_FILES_SERVICE_H_
#define CARAVAN_CLUSTER_PACK_FILES_SERVICE_H_

// Gives the files of packed models to workers that keep a copy of them: only files that are on the
// list, whatever a caller names.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "caravan/v1/model_files.grpc.pb.h"
#include "cluster/part_stream.h"
#include "cluster/serving_share.h"
#include "model/pack/packed_model.h"

namespace caravan {

struct ShelvedFile {
  std::string name;  // as the manifest says, or kPackManifestName
  std::string path;
  int64_t bytes = 0;
};

/// All that the pack has here, and its manifest. Errors: as ReadableFile::Open of that.
absl::StatusOr<std::vector<ShelvedFile>> FilesOfPack(const PackedModel& model);

/// Thread-safe.
class PackFilesService final : public v1::PackFiles::Service {
 public:
  /// The whole files of the packed model with this fingerprint. Called by any thread.
  using List = std::function<std::vector<ShelvedFile>(uint64_t fingerprint)>;

  /// `incarnation` is this process's. Borrows `share`. Who has not said within `receipt_timeout`
  /// that a part has come loses its call.
  PackFilesService(uint64_t incarnation, List list, ServingShare* share,
                   absl::Duration receipt_timeout = kPartTimeout)
      : incarnation_(incarnation),
        list_(std::move(list)),
        share_(share),
        receipt_timeout_(receipt_timeout) {}

  grpc::Status ListFiles(grpc::ServerContext* context, const v1::ListFilesRequest* request,
                         v1::ListFilesResponse* response) override;
  grpc::Status ReadFile(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<v1::ReadFileResponse, v1::ReadFileRequest>* stream) override;

 private:
  absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const v1::FilePart& part) const;

  const uint64_t incarnation_;
  const List list_;
  ServingShare* const share_;
  const absl::Duration receipt_timeout_;
};

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_PACK_FILES_SERVICE_H_
