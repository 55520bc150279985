#include "cluster/grpc_status.h"

#include <string>

namespace caravan {

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      std::string(status.message().substr(0, kMaxStatusMessageBytes)));
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  // Nobody of ours says nothing: the far end died before it could.
  if (status.error_message().empty() && code != absl::StatusCode::kCancelled) {
    return absl::UnavailableError("the connection ended without a word");
  }
  return absl::Status(code, status.error_message());
}

}  // namespace caravan
