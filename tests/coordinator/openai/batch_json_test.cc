#include "coordinator/openai/batch_json.h"

#include <string>

#include "coordinator/http/http_error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using nlohmann::json;

TEST(BatchJsonTest, AFileIsOpenAisFileObject) {
  EXPECT_EQ(FileJson({"file-1", "a.jsonl", "batch", 12, 1700000000}), json::parse(R"({
    "id": "file-1", "object": "file", "bytes": 12, "created_at": 1700000000,
    "filename": "a.jsonl", "purpose": "batch", "status": "processed"})"));
  EXPECT_EQ(DeletedFileJson("file-1"),
            json::parse(R"({"id": "file-1", "object": "file", "deleted": true})"));
}

TEST(BatchJsonTest, PagesNameTheirEnds) {
  BatchBook::FilePage page;
  EXPECT_EQ(FilePageJson(page), json::parse(R"({"object": "list", "data": [], "first_id": null,
    "last_id": null, "has_more": false})"));
  page.files = {{"file-2", "b", "batch", 1, 2}, {"file-1", "a", "batch", 1, 1}};
  page.has_more = true;
  const json list = FilePageJson(page);
  EXPECT_EQ(list["data"].size(), 2u);
  EXPECT_EQ(list["first_id"], "file-2");
  EXPECT_EQ(list["last_id"], "file-1");
  EXPECT_EQ(list["has_more"], true);
}

TEST(BatchJsonTest, ANewBatchHasEveryFieldOfOpenAis) {
  Batch batch;
  batch.id = "batch_1";
  batch.endpoint = "/v1/completions";
  batch.input_file_id = "file-1";
  batch.created_at = 1700000000;
  EXPECT_EQ(BatchJson(batch), json::parse(R"({
    "id": "batch_1", "object": "batch", "endpoint": "/v1/completions", "errors": null,
    "input_file_id": "file-1", "completion_window": "24h", "status": "validating",
    "output_file_id": null, "error_file_id": null, "created_at": 1700000000,
    "in_progress_at": null, "expires_at": null, "finalizing_at": null, "completed_at": null,
    "failed_at": null, "expired_at": null, "cancelling_at": null, "cancelled_at": null,
    "request_counts": {"total": 0, "completed": 0, "failed": 0}, "metadata": null})"));
}

TEST(BatchJsonTest, WhatABatchCameToIsTold) {
  Batch batch;
  batch.status = BatchStatus::kCompleted;
  batch.metadata = {{"night", "1"}};
  batch.counts = {3, 2, 1};
  batch.in_progress_at = 5;
  batch.completed_at = 9;
  batch.output_file_id = "file-o";
  batch.error_file_id = "file-e";
  const json completed = BatchJson(batch);
  EXPECT_EQ(completed["status"], "completed");
  EXPECT_EQ(completed["metadata"], json({{"night", "1"}}));
  EXPECT_EQ(completed["request_counts"], json({{"total", 3}, {"completed", 2}, {"failed", 1}}));
  EXPECT_EQ(completed["in_progress_at"], 5);
  EXPECT_EQ(completed["completed_at"], 9);
  EXPECT_EQ(completed["output_file_id"], "file-o");
  EXPECT_EQ(completed["error_file_id"], "file-e");

  batch.status = BatchStatus::kFailed;
  batch.errors = {{"invalid_json_line", "not JSON", std::nullopt, 3},
                  {"empty_file", "no lines", "x", std::nullopt}};
  EXPECT_EQ(BatchJson(batch)["errors"], json::parse(R"({"object": "list", "data": [
    {"code": "invalid_json_line", "message": "not JSON", "param": null, "line": 3},
    {"code": "empty_file", "message": "no lines", "param": "x", "line": null}]})"));
}

TEST(BatchJsonTest, ReadsANewBatch) {
  const auto batch = ParseNewBatch(json::parse(R"({"input_file_id": "file-1",
    "endpoint": "/v1/chat/completions", "completion_window": "24h",
    "metadata": {"a": "b"}, "some_later_field": 1})"));
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(batch->input_file_id, "file-1");
  EXPECT_EQ(batch->endpoint, "/v1/chat/completions");
  EXPECT_EQ(batch->metadata.at("a"), "b");
  EXPECT_TRUE(
      ParseNewBatch(json::parse(R"({"input_file_id": "f", "endpoint": "e", "metadata": null})"))
          .ok());
}

TEST(BatchJsonTest, NamesTheFieldThatIsWrong) {
  const auto expect = [](const std::string& body, const std::string& param) {
    const absl::Status status = ParseNewBatch(json::parse(body)).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << body;
    EXPECT_EQ(ErrorJson(status)["error"]["param"], param) << body;
  };
  expect(R"({"endpoint": "e"})", "input_file_id");
  expect(R"({"input_file_id": 1, "endpoint": "e"})", "input_file_id");
  expect(R"({"input_file_id": "f"})", "endpoint");
  expect(R"({"input_file_id": "f", "endpoint": "e", "completion_window": "1h"})",
         "completion_window");
  expect(R"({"input_file_id": "f", "endpoint": "e", "metadata": []})", "metadata");
  expect(R"({"input_file_id": "f", "endpoint": "e", "metadata": {"a": 1}})", "metadata.a");
  expect(R"({"input_file_id": "f", "endpoint": "e", "output_expires_after": {}})",
         "output_expires_after");
}

}  // namespace
}  // namespace caravan
