// The Batches service over a real connection.

#include "coordinator/batch_grpc_service.h"

#include <grpcpp/grpcpp.h>

#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/batch_testing.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

class BatchGrpcServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto started = StartGrpcServer("127.0.0.1:0", {&service_});
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = std::move(started->server);
    stub_ = v1::Batches::NewStub(MakeGrpcChannel(absl::StrCat("127.0.0.1:", started->port)));
  }
  void TearDown() override {
    service_.Stop();
    ShutDownGrpcServer(*server_, absl::InfiniteDuration());
  }

  /// Sends the messages and half-closes.
  absl::Status Submit(const std::vector<v1::SubmitBatchRequest>& messages,
                      v1::Batch* created = nullptr) {
    grpc::ClientContext context;
    v1::SubmitBatchResponse response;
    const auto writer = stub_->SubmitBatch(&context, &response);
    for (const v1::SubmitBatchRequest& message : messages) {
      if (!writer->Write(message)) break;
    }
    writer->WritesDone();
    const absl::Status status = FromGrpcStatus(writer->Finish());
    if (created != nullptr) *created = response.batch();
    return status;
  }

  static v1::SubmitBatchRequest Header(uint64_t content_bytes,
                                       const std::string& endpoint = "/v1/chat/completions") {
    v1::SubmitBatchRequest request;
    request.mutable_header()->set_filename("in.jsonl");
    request.mutable_header()->set_endpoint(endpoint);
    request.mutable_header()->set_content_bytes(content_bytes);
    (*request.mutable_header()->mutable_metadata())["k"] = "v";
    return request;
  }

  static v1::SubmitBatchRequest Piece(const std::string& content) {
    v1::SubmitBatchRequest request;
    request.set_content(content);
    return request;
  }

  absl::StatusOr<std::string> ReadOutput(const std::string& id, v1::BatchOutput output,
                                         int64_t cursor = 0) {
    grpc::ClientContext context;
    v1::ReadBatchOutputRequest request;
    request.set_batch_id(id);
    request.set_output(output);
    request.set_cursor(cursor);
    const auto reader = stub_->ReadBatchOutput(&context, request);
    v1::ReadBatchOutputResponse response;
    std::string content;
    while (reader->Read(&response)) {
      content += response.content();
      last_cursor_ = response.next_cursor();
    }
    const absl::Status status = FromGrpcStatus(reader->Finish());
    if (!status.ok()) return status;
    return content;
  }

  TestBatchBook batches_;
  SimulatedClock clock_;
  BatchGrpcService service_{&batches_.book(), &clock_};
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Batches::Stub> stub_;
  int64_t last_cursor_ = 0;
};

TEST_F(BatchGrpcServiceTest, PiecesBecomeOneFile) {
  v1::Batch created;
  ASSERT_TRUE(
      Submit({Header(7), Piece("{}\n"), Piece(""), Piece("{}"), Piece("{}")}, &created).ok());
  EXPECT_EQ(created.state(), v1::BATCH_STATE_VALIDATING);
  EXPECT_EQ(created.endpoint(), "/v1/chat/completions");
  EXPECT_EQ(created.metadata().at("k"), "v");
  EXPECT_GT(created.created_at_s(), 0);
  EXPECT_EQ(*batches_.book().FileContent(created.input_file_id()), "{}\n{}{}");
  EXPECT_EQ(batches_.book().GetFile(created.input_file_id())->filename, "in.jsonl");
}

TEST_F(BatchGrpcServiceTest, SilentClientsGiveWayToOthers) {
  struct Silent {
    grpc::ClientContext context;
    v1::SubmitBatchResponse response;
    std::unique_ptr<grpc::ClientWriter<v1::SubmitBatchRequest>> writer;
  };
  std::list<Silent> silent;
  const auto submit = [&] { return Submit({Header(2), Piece("{}")}); };
  // As many as there are places for.
  while (!absl::IsResourceExhausted(submit())) {
    ASSERT_LT(silent.size(), 1000u);
    Silent& client = silent.emplace_back();
    client.writer = stub_->SubmitBatch(&client.context, &client.response);
    ASSERT_TRUE(client.writer->Write(Header(2)));
  }
  EXPECT_TRUE(absl::IsResourceExhausted(submit()));  // they may only be slow
  clock_.Advance(absl::Seconds(31));
  absl::Status status;
  const absl::Time deadline = absl::Now() + absl::Minutes(1);
  do {
    status = submit();
  } while (absl::IsResourceExhausted(status) && absl::Now() < deadline);
  EXPECT_TRUE(status.ok()) << status;
  for (Silent& client : silent) {
    client.context.TryCancel();
    EXPECT_FALSE(client.writer->Finish().ok());
  }
}

TEST_F(BatchGrpcServiceTest, RefusesWhatIsNoSubmission) {
  const auto expect = [&](const std::vector<v1::SubmitBatchRequest>& messages,
                          const std::string& says) {
    const absl::Status status = Submit(messages);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(says));
  };
  expect({}, "first message must be the header");
  expect({Piece("{}")}, "first message must be the header");
  expect({Header(0)}, "the file is empty");
  expect({Header(2), Header(2)}, "second header");
  expect({Header(3), Piece("{}")}, "fewer bytes than content_bytes says, 3");
  expect({Header(3), Piece("{}"), Piece("{}"), Piece("{}")}, "more bytes than content_bytes");
  expect({Header(uint64_t{kMaxUploadBytes} + 1)}, "larger than");
  expect({Header(2, "/v1/embeddings"), Piece("{}")}, "endpoint");
  // Nothing of these is kept.
  EXPECT_TRUE(batches_.book().ListFiles({})->files.empty());
}

TEST_F(BatchGrpcServiceTest, ACallThatBreaksOffLeavesNoBatch) {
  {
    grpc::ClientContext context;
    v1::SubmitBatchResponse response;
    const auto writer = stub_->SubmitBatch(&context, &response);
    writer->Write(Header(2));
    writer->Write(Piece("{}"));
    context.TryCancel();
    EXPECT_EQ(writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  server_->Shutdown();  // waits for the call's end
  EXPECT_TRUE(batches_.book().ListBatches("", 10)->batches.empty());
}

TEST_F(BatchGrpcServiceTest, WaitTellsEachChangeUntilTheEnd) {
  const std::string id = batches_.AddBatch().id;
  grpc::ClientContext context;
  v1::WaitBatchRequest request;
  request.set_batch_id(id);
  const auto reader = stub_->WaitBatch(&context, request);
  v1::WaitBatchResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.batch().state(), v1::BATCH_STATE_VALIDATING);
  batches_.Begin(id);
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.batch().state(), v1::BATCH_STATE_IN_PROGRESS);
  EXPECT_EQ(response.batch().total_lines(), 1u);
  batches_.End(id, /*failed=*/true, "no\n");
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.batch().state(), v1::BATCH_STATE_COMPLETED);
  EXPECT_EQ(response.batch().failed_lines(), 1u);
  EXPECT_GT(response.batch().ended_at_s(), 0);
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(BatchGrpcServiceTest, WaitEndsWhenTheCoordinatorLeaves) {
  const std::string id = batches_.AddBatch().id;
  grpc::ClientContext context;
  v1::WaitBatchRequest request;
  request.set_batch_id(id);
  const auto reader = stub_->WaitBatch(&context, request);
  v1::WaitBatchResponse response;
  ASSERT_TRUE(reader->Read(&response));
  service_.Stop();
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(BatchGrpcServiceTest, OutputsAreReadWholeOrFromACursor) {
  const std::string id = batches_.AddBatch().id;
  EXPECT_EQ(ReadOutput(id, v1::BATCH_OUTPUT_REPLIES).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ReadOutput(id, v1::BATCH_OUTPUT_UNSPECIFIED).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadOutput("batch_nosuch", v1::BATCH_OUTPUT_REPLIES).status().code(),
            absl::StatusCode::kNotFound);
  batches_.Begin(id);
  batches_.End(id, /*failed=*/false, "{\"reply\": 1}\n");
  EXPECT_EQ(*ReadOutput(id, v1::BATCH_OUTPUT_REPLIES), "{\"reply\": 1}\n");
  EXPECT_EQ(*ReadOutput(id, v1::BATCH_OUTPUT_REPLIES, last_cursor_), "");
  EXPECT_EQ(*ReadOutput(id, v1::BATCH_OUTPUT_ERRORS), "");
}

TEST_F(BatchGrpcServiceTest, GetListAndCancelTranslate) {
  const std::string first = batches_.AddBatch().id;
  const std::string second = batches_.AddBatch().id;
  batches_.Fail(first, {{"invalid_json_line", "is not JSON", "body", 7}});
  grpc::ClientContext get_context;
  v1::GetBatchRequest get;
  get.set_batch_id(first);
  v1::GetBatchResponse got;
  ASSERT_TRUE(stub_->GetBatch(&get_context, get, &got).ok());
  EXPECT_EQ(got.batch().state(), v1::BATCH_STATE_FAILED);
  ASSERT_EQ(got.batch().errors_size(), 1);
  EXPECT_EQ(got.batch().errors(0).line(), 7u);
  EXPECT_EQ(got.batch().errors(0).param(), "body");

  grpc::ClientContext list_context;
  v1::ListBatchesRequest list;
  list.set_limit(1);
  v1::ListBatchesResponse page;
  ASSERT_TRUE(stub_->ListBatches(&list_context, list, &page).ok());
  ASSERT_EQ(page.batches_size(), 1);
  EXPECT_EQ(page.batches(0).batch_id(), second);
  EXPECT_TRUE(page.has_more());
  grpc::ClientContext large_context;
  list.set_limit(1001);
  EXPECT_EQ(stub_->ListBatches(&large_context, list, &page).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);

  const auto cancel = [&](const std::string& id) {
    grpc::ClientContext context;
    v1::CancelBatchRequest request;
    request.set_batch_id(id);
    v1::CancelBatchResponse response;
    return stub_->CancelBatch(&context, request, &response).error_code();
  };
  EXPECT_EQ(cancel(second), grpc::StatusCode::OK);
  EXPECT_EQ(cancel(first), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(cancel("batch_nosuch"), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace caravan
