// What the far end of caravan probe link refuses. That it measures right:
// tests/cli/probe_link_test.

#include "cluster/probe_service.h"

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cluster/grpc_transport.h"
#include "gmock/gmock.h"
#include "grpcpp/client_context.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kSoon = absl::Seconds(60);

class ProbeServiceTest : public ::testing::Test {
 protected:
  ProbeServiceTest()
      : server_(*StartGrpcServer("127.0.0.1:0", {&service_})),
        stub_(v1::Probe::NewStub(MakeGrpcChannel(absl::StrCat("127.0.0.1:", server_.port)))) {}
  ~ProbeServiceTest() override { ShutDownGrpcServer(*server_.server, absl::ZeroDuration()); }

  static void Limit(grpc::ClientContext& context) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + kSoon));
  }

  /// The end of a measurement that asks for so much time, with one message of so many bytes.
  grpc::Status Receive(uint32_t count_ms, int payload_bytes) {
    grpc::ClientContext context;
    Limit(context);
    v1::ReceiveReply reply;
    const auto writer = stub_->Receive(&context, &reply);
    v1::ReceiveRequest request;
    request.set_count_ms(count_ms);
    request.set_payload(ProbePayload(payload_bytes));
    writer->Write(request);
    writer->WritesDone();
    return writer->Finish();
  }

  ProbeService service_;
  GrpcServer server_;
  std::unique_ptr<v1::Probe::Stub> stub_;
};

TEST_F(ProbeServiceTest, EchoesWhatItGetsUpToAMebibyte) {
  grpc::ClientContext context;
  Limit(context);
  const auto stream = stub_->Echo(&context);
  v1::EchoRequest request;
  v1::EchoReply reply;
  for (const int bytes : {0, 1, kMostEchoBytes}) {
    request.set_payload(ProbePayload(bytes));
    ASSERT_TRUE(stream->Write(request) && stream->Read(&reply));
    EXPECT_TRUE(reply.payload() == request.payload());
  }
  request.set_payload(ProbePayload(kMostEchoBytes + 1));
  stream->Write(request);
  EXPECT_FALSE(stream->Read(&reply));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ProbeServiceTest, CountsForUpToTenSeconds) {
  EXPECT_EQ(Receive(0, 1).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Receive(10'001, 1).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Receive(10, kMostEchoBytes + 1).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  // After which it is free for another.
  EXPECT_TRUE(Receive(10'000, 1).ok());
}

TEST_F(ProbeServiceTest, MeasuresOneRateAtATime) {
  grpc::ClientContext context;
  Limit(context);
  const auto reader = stub_->Send(&context, v1::SendRequest());
  v1::SendReply reply;
  ASSERT_TRUE(reader->Read(&reply));
  EXPECT_EQ(reply.payload().size(), static_cast<size_t>(kProbeMessageBytes));
  const grpc::Status other = Receive(10, 1);
  EXPECT_EQ(other.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(other.error_message(), HasSubstr("under way"));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // The service notices by and by.
  grpc::Status after;
  const absl::Time deadline = absl::Now() + kSoon;
  do {
    after = Receive(10, 1);
  } while (!after.ok() && absl::Now() < deadline);
  EXPECT_TRUE(after.ok()) << after.error_message();
}

TEST_F(ProbeServiceTest, PayloadsAreNoise) {
  const std::string payload = ProbePayload(1001);
  EXPECT_EQ(payload.size(), 1001u);
  int counts[256] = {};
  for (const char c : payload) ++counts[static_cast<unsigned char>(c)];
  for (const int count : counts) EXPECT_LT(count, 30);
}

}  // namespace
}  // namespace caravan
