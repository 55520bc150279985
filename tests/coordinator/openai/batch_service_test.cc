// Files and batches over real sockets.

#include "coordinator/openai/batch_service.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/http/http_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/batch_testing.h"
#include "tests/support/raw_http_client.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

struct Answer {
  int status = 0;
  std::string head;
  std::string body;

  json Json() const { return json::parse(body, nullptr, /*allow_exceptions=*/false); }
  /// The error's param, or its whole text where there is none.
  std::string Param() const {
    const json error = Json().value("error", json::object());
    return error.value("param", json()).is_string() ? error["param"].get<std::string>() : body;
  }
};

/// Of a body in chunks, the bytes; without its end something else.
std::string Unchunk(absl::string_view chunks) {
  std::string bytes;
  while (true) {
    const size_t end = chunks.find("\r\n");
    uint64_t size = 0;
    if (end == absl::string_view::npos || !absl::SimpleHexAtoi(chunks.substr(0, end), &size)) {
      return absl::StrCat(bytes, "[broken]");
    }
    if (size == 0) return bytes;
    bytes += std::string(chunks.substr(end + 2, size));
    chunks.remove_prefix(std::min(chunks.size(), end + 4 + static_cast<size_t>(size)));
  }
}

class BatchServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Router router;
    service_.AddRoutes(router);
    HttpServer::Options options;
    options.listen = "127.0.0.1:0";
    auto server = HttpServer::Start(std::move(options), std::move(router));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void TearDown() override {
    server_->Stop(absl::ZeroDuration());
    service_.Stop();
  }

  Answer Ask(const std::string& method, const std::string& target, const std::string& body = "",
             const std::string& headers = "") {
    RawHttpClient client(server_->address());
    client.SendRequest(method, target, body, absl::StrCat("Connection: close\r\n", headers));
    Answer answer;
    answer.head = client.ReadUntil("\r\n\r\n");
    answer.body = client.ReadToEnd();
    EXPECT_TRUE(absl::SimpleAtoi(answer.head.substr(9, 3), &answer.status)) << answer.head;
    if (absl::StrContains(answer.head, "chunked") && method != "HEAD") {
      answer.body = Unchunk(answer.body);
    }
    return answer;
  }

  Answer Upload(const std::string& content, const std::string& purpose = "batch",
                const std::string& filename = "in.jsonl") {
    return Ask("POST", "/v1/files",
               absl::StrCat("--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n",
                            purpose, "\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; ",
                            "filename=\"", filename, "\"\r\n\r\n", content, "\r\n--B--\r\n"),
               "Content-Type: multipart/form-data; boundary=B\r\n");
  }

  Answer CreateBatch(const std::string& file_id, const std::string& more = "") {
    return Ask("POST", "/v1/batches",
               absl::StrCat("{\"input_file_id\": \"", file_id,
                            "\", \"endpoint\": \"/v1/chat/completions\", ",
                            "\"completion_window\": \"24h\"", more, "}"));
  }

  TestBatchBook batches_;
  BatchService service_{&batches_.book()};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(BatchServiceTest, AFileIsUploadedReadAndDeleted) {
  const Answer uploaded = Upload("{\"a\": 1}\n{\"b\": \"\xe6\x95\xb0\"}\n");
  ASSERT_EQ(uploaded.status, 200) << uploaded.body;
  const std::string id = uploaded.Json()["id"];
  EXPECT_EQ(uploaded.Json()["filename"], "in.jsonl");
  EXPECT_EQ(uploaded.Json()["bytes"], 22);

  EXPECT_EQ(Ask("GET", "/v1/files/" + id).Json(), uploaded.Json());
  const Answer content = Ask("GET", absl::StrCat("/v1/files/", id, "/content"));
  EXPECT_EQ(content.status, 200);
  EXPECT_EQ(content.body, "{\"a\": 1}\n{\"b\": \"\xe6\x95\xb0\"}\n");
  EXPECT_THAT(content.head, HasSubstr("application/octet-stream"));
  const Answer head = Ask("HEAD", absl::StrCat("/v1/files/", id, "/content"));
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.body, "");

  EXPECT_EQ(Ask("DELETE", "/v1/files/" + id).Json()["deleted"], true);
  for (const std::string& target :
       {"/v1/files/" + id, absl::StrCat("/v1/files/", id, "/content")}) {
    EXPECT_EQ(Ask("GET", target).status, 404);
    EXPECT_EQ(Ask("HEAD", target).status, 404);
  }
  EXPECT_EQ(Ask("DELETE", "/v1/files/" + id).status, 404);
}

TEST_F(BatchServiceTest, ALargeFileComesBackWhole) {
  // Several pieces, lines of every length, one of them larger than a piece.
  std::string content;
  for (int i = 0; content.size() < (size_t{4} << 20); ++i) {
    absl::StrAppend(&content, i, std::string(static_cast<size_t>(i * 7919 % 5000), 'x'), "\n");
  }
  absl::StrAppend(&content, std::string(size_t{3} << 20, 'y'), "\nend");
  const Answer uploaded = Upload(content);
  ASSERT_EQ(uploaded.status, 200) << uploaded.body;
  const std::string target =
      absl::StrCat("/v1/files/", uploaded.Json()["id"].get<std::string>(), "/content");
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] { EXPECT_TRUE(Ask("GET", target).body == content); });
  }
  for (std::thread& reader : readers) reader.join();
}

TEST_F(BatchServiceTest, ADownloadThatIsNotReadHoldsUpNobody) {
  const Answer uploaded = Upload(std::string(size_t{8} << 20, 'x'));
  ASSERT_EQ(uploaded.status, 200);
  const std::string id = uploaded.Json()["id"];
  RawHttpClient slow(server_->address(), /*receive_buffer=*/4096);
  slow.SendRequest("GET", absl::StrCat("/v1/files/", id, "/content"));
  slow.ReadUntil("\r\n\r\n");  // it is under way
  EXPECT_EQ(Ask("GET", "/v1/files/" + id).status, 200);
}

TEST_F(BatchServiceTest, FilesAreListedInPages) {
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(Upload("{}\n").Json()["id"]);
  const json newest = Ask("GET", "/v1/files?limit=2").Json();
  EXPECT_EQ(newest["data"].size(), 2u);
  EXPECT_EQ(newest["first_id"], ids[2]);
  EXPECT_EQ(newest["last_id"], ids[1]);
  EXPECT_EQ(newest["has_more"], true);
  const json rest = Ask("GET", "/v1/files?limit=2&after=" + ids[1]).Json();
  EXPECT_EQ(rest["data"].size(), 1u);
  EXPECT_EQ(rest["first_id"], ids[0]);
  EXPECT_EQ(rest["has_more"], false);
  EXPECT_EQ(Ask("GET", "/v1/files?order=asc").Json()["first_id"], ids[0]);
  EXPECT_EQ(Ask("GET", "/v1/files?purpose=batch").Json()["data"].size(), 3u);
  EXPECT_EQ(Ask("GET", "/v1/files?purpose=batch_output").Json()["data"].size(), 0u);

  EXPECT_EQ(Ask("GET", "/v1/files?limit=0").Param(), "limit");
  EXPECT_EQ(Ask("GET", "/v1/files?limit=x").Param(), "limit");
  EXPECT_EQ(Ask("GET", "/v1/files?order=up").Param(), "order");
  EXPECT_EQ(Ask("GET", "/v1/files?limit=1&limit=2").Param(), "limit");
  EXPECT_EQ(Ask("GET", "/v1/files?after=nosuch").status, 404);
  EXPECT_EQ(Ask("GET", "/v1/files?after=%").status, 400);
}

TEST_F(BatchServiceTest, WrongUploadsAreRefusedByName) {
  EXPECT_EQ(Upload("").Param(), "file");
  EXPECT_EQ(Upload("{}", "fine-tune").Param(), "purpose");
  EXPECT_EQ(Upload("{}", "batch", "").Param(), "file");
  EXPECT_EQ(Upload("{}", "batch", "\xff").Param(), "filename");
  EXPECT_EQ(Upload("{}", "batch", std::string(600, 'x')).Param(), "filename");
  const Answer no_form = Ask("POST", "/v1/files", "{}", "Content-Type: application/json\r\n");
  EXPECT_EQ(no_form.status, 400);
  EXPECT_THAT(no_form.body, HasSubstr("multipart/form-data"));
  const Answer cut =
      Ask("POST", "/v1/files", "--B\r\n", "Content-Type: multipart/form-data; boundary=B\r\n");
  EXPECT_EQ(cut.status, 400);
  EXPECT_THAT(cut.body, HasSubstr("cut off"));
}

TEST_F(BatchServiceTest, ABodyOverTheLimitIsRefusedBeforeItIsRead) {
  RawHttpClient client(server_->address());
  client.Send(absl::StrCat(
      "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: ",
      "multipart/form-data; boundary=B\r\nContent-Length: ", kMaxUploadBytes + 1, "\r\n\r\n"));
  EXPECT_THAT(client.ReadAnswer(), HasSubstr("HTTP/1.1 413 "));
}

TEST_F(BatchServiceTest, ABatchGoesThroughItsLife) {
  const std::string file = Upload("{\"custom_id\": \"a\"}\n").Json()["id"];
  const Answer created = CreateBatch(file, ", \"metadata\": {\"k\": \"v\"}");
  ASSERT_EQ(created.status, 200) << created.body;
  const std::string id = created.Json()["id"];
  EXPECT_EQ(created.Json()["status"], "validating");
  EXPECT_EQ(created.Json()["metadata"]["k"], "v");
  EXPECT_EQ(Ask("DELETE", "/v1/files/" + file).status, 409);

  batches_.Begin(id);
  const json running = Ask("GET", "/v1/batches/" + id).Json();
  EXPECT_EQ(running["status"], "in_progress");
  EXPECT_EQ(running["request_counts"]["total"], 1);

  batches_.End(id, /*failed=*/false, "{\"custom_id\": \"a\"}\n");
  const json ended = Ask("GET", "/v1/batches/" + id).Json();
  EXPECT_EQ(ended["status"], "completed");
  EXPECT_EQ(ended["request_counts"]["completed"], 1);
  EXPECT_EQ(ended["error_file_id"], nullptr);
  const std::string output = ended["output_file_id"];
  EXPECT_EQ(Ask("GET", absl::StrCat("/v1/files/", output, "/content")).body,
            "{\"custom_id\": \"a\"}\n");
  EXPECT_EQ(Ask("GET", "/v1/files/" + output).Json()["purpose"], "batch_output");

  const Answer late = Ask("POST", absl::StrCat("/v1/batches/", id, "/cancel"));
  EXPECT_EQ(late.status, 409);
  EXPECT_THAT(late.body, HasSubstr("completed already"));
}

TEST_F(BatchServiceTest, ABatchIsCancelled) {
  const Batch batch = batches_.AddBatch();
  for (int i = 0; i < 2; ++i) {  // idempotent
    const Answer cancelled = Ask("POST", absl::StrCat("/v1/batches/", batch.id, "/cancel"));
    EXPECT_EQ(cancelled.status, 200) << cancelled.body;
    EXPECT_EQ(cancelled.Json()["status"], "cancelling");
  }
}

TEST_F(BatchServiceTest, ErrorsOfAFileAreTold) {
  const Batch batch = batches_.AddBatch();
  batches_.Fail(batch.id, {{"invalid_json_line", "is not JSON", std::nullopt, 7}});
  const json failed = Ask("GET", "/v1/batches/" + batch.id).Json();
  EXPECT_EQ(failed["status"], "failed");
  EXPECT_EQ(failed["errors"]["data"][0]["line"], 7);
  EXPECT_EQ(failed["errors"]["data"][0]["code"], "invalid_json_line");
}

TEST_F(BatchServiceTest, BatchesAreListedInPages) {
  std::vector<std::string> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(batches_.AddBatch().id);
  const json newest = Ask("GET", "/v1/batches?limit=2").Json();
  EXPECT_EQ(newest["first_id"], ids[2]);
  EXPECT_EQ(newest["has_more"], true);
  EXPECT_EQ(Ask("GET", "/v1/batches?after=" + ids[1]).Json()["last_id"], ids[0]);
  EXPECT_EQ(Ask("GET", "/v1/batches?limit=101").Param(), "limit");
  EXPECT_EQ(Ask("GET", "/v1/batches?after=nosuch").status, 404);
}

TEST_F(BatchServiceTest, WrongBatchesAreRefusedByName) {
  EXPECT_EQ(CreateBatch("file-nosuch").Param(), "input_file_id");
  const std::string file = Upload("{}\n").Json()["id"];
  EXPECT_EQ(CreateBatch(file, ", \"metadata\": {\"a\": 1}").Param(), "metadata.a");
  EXPECT_EQ(
      Ask("POST", "/v1/batches",
          absl::StrCat("{\"input_file_id\": \"", file, "\", \"endpoint\": \"/v1/embeddings\"}"))
          .Param(),
      "endpoint");
  EXPECT_EQ(Ask("POST", "/v1/batches", "{").status, 400);
  EXPECT_EQ(Ask("POST", "/v1/batches", "[]").status, 400);
  EXPECT_EQ(Ask("GET", "/v1/batches/batch_nosuch").status, 404);
  EXPECT_EQ(Ask("POST", "/v1/batches/batch_nosuch/cancel").status, 404);
  EXPECT_EQ(Ask("DELETE", "/v1/batches/batch_nosuch").status, 405);
}

TEST_F(BatchServiceTest, StoppingDropsWhatWaits) {
  service_.Stop();
  EXPECT_EQ(Ask("GET", "/v1/files").status, 429);
  EXPECT_EQ(Upload("{}\n").status, 429);
  EXPECT_EQ(Ask("GET", "/v1/files/x/content").status, 429);
}

}  // namespace
}  // namespace caravan
