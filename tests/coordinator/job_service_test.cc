// The Jobs service over a real connection, before workers that are not there.

#include "coordinator/job_service.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_pipeline.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr uint32_t kMaxTokens = 40;

/// The toy model talks noise: characters that begin in one token and end in another, or never.
class JobServiceTest : public ::testing::Test {
 protected:
  struct Reply {
    absl::Status status;
    std::vector<v1::TextDelta> deltas;
    std::vector<uint32_t> ids;
    std::string text;
    v1::JobFinished finished;
  };

  void SetUp() override {
    auto started = StartGrpcServer("127.0.0.1:0", {&service_});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = std::move(started->server);
    stub_ = v1::Jobs::NewStub(MakeGrpcChannel(absl::StrCat("127.0.0.1:", started->port)));
    driver_.Attach(workers_.Connect());
    player_.emplace(&workers_, &driver_);
  }
  void TearDown() override {
    ShutDownGrpcServer(*server_, absl::InfiniteDuration());
    player_.reset();
    driver_.Shutdown();
  }

  Reply Submit(const std::vector<uint32_t>& known, uint64_t seed = 1) {
    v1::SubmitRequest request;
    v1::ChatMessage& message = *request.add_messages();
    message.set_role("user");
    message.set_content("hi");
    request.set_max_tokens(kMaxTokens);
    request.mutable_sampling()->set_temperature(1);
    request.mutable_sampling()->set_seed(seed);
    request.mutable_reply_token_ids()->Assign(known.begin(), known.end());
    grpc::ClientContext context;
    const auto reader = stub_->Submit(&context, request);
    Reply reply;
    for (v1::JobEvent event; reader->Read(&event);) {
      if (event.has_delta()) {
        for (const uint32_t id : event.delta().token_ids()) reply.ids.push_back(id);
        reply.deltas.push_back(event.delta());
        reply.text += event.delta().text();
      } else if (event.has_finished()) {
        reply.finished = event.finished();
      }
    }
    reply.status = FromGrpcStatus(reader->Finish());
    return reply;
  }

  static PipelineDriver::Options DriverOptions() {
    PipelineDriver::Options options;
    options.vocab_size = 2048;
    options.context_tokens = 256;
    return options;
  }
  static FakePipeline::Options Workers() {
    FakePipeline::Options options;
    options.model.vocab_size = 2048;
    options.kv_blocks = 256;
    return options;
  }

  FakePipeline workers_{Workers()};
  PipelineDriver driver_{DriverOptions()};
  JobService service_{&TinyText(), &driver_, &SteadyClock()};
  std::optional<FakePipeline::Player> player_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Jobs::Stub> stub_;
};

TEST_F(JobServiceTest, AReplyGoesOnBehindWhatItsClientHas) {
  const Reply whole = Submit({});
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  ASSERT_EQ(whole.ids.size(), kMaxTokens);
  EXPECT_EQ(whole.finished.completion_tokens(), kMaxTokens);
  for (size_t known = 0; known <= whole.ids.size(); ++known) {
    const auto cut = whole.ids.begin() + static_cast<std::ptrdiff_t>(known);
    const Reply rest = Submit({whole.ids.begin(), cut});
    ASSERT_TRUE(rest.status.ok()) << rest.status;
    EXPECT_EQ(rest.ids, std::vector<uint32_t>(cut, whole.ids.end())) << known;
    EXPECT_TRUE(::testing::Value(whole.text, ::testing::EndsWith(rest.text))) << known;
    EXPECT_EQ(rest.finished.completion_tokens(), kMaxTokens) << known;
    EXPECT_EQ(rest.finished.reason(), whole.finished.reason()) << known;
  }
}

TEST_F(JobServiceTest, NoCharacterIsLostOrRepeatedWhereAReplyBrokeOff) {
  const Reply whole = Submit({});
  std::vector<uint32_t> known;
  std::string text;
  for (const v1::TextDelta& delta : whole.deltas) {
    text += delta.text();
    if (delta.token_ids().empty()) continue;  // the token comes with the next one
    known.insert(known.end(), delta.token_ids().begin(), delta.token_ids().end());
    EXPECT_EQ(text + Submit(known).text, whole.text) << known.size();
  }
}

TEST_F(JobServiceTest, AReplyThatTheModelDoesNotSayIsRefused) {
  const Reply whole = Submit({});
  std::vector<uint32_t> known(whole.ids.begin(), whole.ids.begin() + 9);
  known.back() ^= 1;
  const absl::Status other = Submit(known).status;
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition) << other;
  EXPECT_THAT(std::string(other.message()), AllOf(StartsWith("reply_token_ids: "),
                                                  HasSubstr(absl::StrCat("token ", whole.ids[8]))));
  EXPECT_EQ(Submit({whole.ids.begin(), whole.ids.begin() + 9}, /*seed=*/2).status.code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(JobServiceTest, AReplyThatCannotBeIsRefused) {
  std::vector<uint32_t> known(5, 7);
  known[2] = 2048;
  EXPECT_EQ(Submit(known).status.code(), absl::StatusCode::kInvalidArgument);
  known[2] = UINT32_MAX;
  EXPECT_EQ(Submit(known).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Submit(std::vector<uint32_t>(kMaxTokens + 1, 7)).status.code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace caravan
