#include "cluster/grpc_status.h"

#include <string>

#include "gtest/gtest.h"

namespace caravan {
namespace {

TEST(GrpcStatusTest, KeepsCodeAndMessageBothWays) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "what \"happened\" \u4e2d");
    const grpc::Status wire = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(wire.error_code()), code);
    EXPECT_EQ(FromGrpcStatus(wire), status);
  }
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpcStatus(grpc::Status::OK).ok());
}

TEST(GrpcStatusTest, AnErrorWithoutAMessageIsALostConnection) {
  EXPECT_EQ(FromGrpcStatus(grpc::Status(grpc::StatusCode::UNKNOWN, "")).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(FromGrpcStatus(grpc::Status(grpc::StatusCode::CANCELLED, "")).code(),
            absl::StatusCode::kCancelled);
}

TEST(GrpcStatusTest, CutsAMessageThatWouldNotTravel) {
  const grpc::Status wire = ToGrpcStatus(absl::InternalError(std::string(100000, 'x')));
  EXPECT_EQ(wire.error_message(), std::string(kMaxStatusMessageBytes, 'x'));
}

}  // namespace
}  // namespace caravan
