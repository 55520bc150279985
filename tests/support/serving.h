#ifndef CARAVAN_TESTS_SUPPORT_SERVING_H_
#define CARAVAN_TESTS_SUPPORT_SERVING_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "cluster/grpc_transport.h"

namespace caravan {

/// A real server of one service, on a port that the system chose, until this ends. Borrows the
/// service.
class Serving {
 public:
  explicit Serving(grpc::Service* service) {
    absl::StatusOr<GrpcServer> started = StartGrpcServer("127.0.0.1:0", {service});
    CARAVAN_CHECK(started.ok());
    server_ = *std::move(started);
  }
  ~Serving() { ShutDownGrpcServer(*server_.server, absl::ZeroDuration()); }
  Serving(const Serving&) = delete;
  Serving& operator=(const Serving&) = delete;

  std::string address() const { return absl::StrCat("127.0.0.1:", server_.port); }
  /// A connection of its own.
  std::shared_ptr<grpc::Channel> channel() const { return MakeGrpcChannel(address()); }

 private:
  GrpcServer server_;
};

}  // namespace caravan

#endif  // CARAVAN_TESTS_SUPPORT_SERVING_H_
