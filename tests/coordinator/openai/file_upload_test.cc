#include "coordinator/openai/file_upload.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "coordinator/http/http_error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

std::string Field(const std::string& disposition, const std::string& content) {
  return absl::StrCat("--B\r\nContent-Disposition: form-data; ", disposition, "\r\n\r\n", content,
                      "\r\n");
}

const std::string& Purpose() {
  static const auto& field = *new std::string(Field("name=\"purpose\"", "batch"));
  return field;
}

const std::string& File() {
  static const auto& field = *new std::string(Field("name=\"file\"; filename=\"a.jsonl\"", "{}\n"));
  return field;
}

HttpRequest Form(const std::string& fields) {
  HttpRequest request;
  request.headers = {{"content-type", "multipart/form-data; boundary=B"}};
  request.body = fields + "--B--\r\n";
  return request;
}

TEST(FileUploadTest, FieldsMayComeInAnyOrder) {
  for (const std::string& fields : {Purpose() + File(), File() + Purpose()}) {
    const HttpRequest request = Form(fields);
    const absl::StatusOr<FileUpload> upload = ParseFileUpload(request);
    ASSERT_TRUE(upload.ok()) << upload.status();
    EXPECT_EQ(upload->file.filename, "a.jsonl");
    EXPECT_EQ(upload->file.purpose, "batch");
    EXPECT_EQ(upload->content, "{}\n");
  }
}

TEST(FileUploadTest, NamesTheFieldThatIsWrong) {
  const auto expect = [](const std::string& fields, const std::string& param,
                         const std::string& says) {
    const HttpRequest request = Form(fields);
    const absl::StatusOr<FileUpload> upload = ParseFileUpload(request);
    ASSERT_EQ(upload.status().code(), absl::StatusCode::kInvalidArgument) << fields;
    EXPECT_EQ(ErrorJson(upload.status())["error"]["param"], param);
    EXPECT_THAT(std::string(upload.status().message()), HasSubstr(says));
  };
  expect(Purpose(), "file", "is missing");
  expect(File(), "purpose", "is missing");
  expect(Purpose() + File() + File(), "file", "is given twice");
  expect(Purpose() + Purpose() + File(), "purpose", "is given twice");
  expect(Field("name=\"purpose\"", "fine-tune") + File(), "purpose", "must be \"batch\"");
  expect(Purpose() + Field("name=\"file\"", "{}"), "file", "filename");
  expect(Purpose() + Field("name=\"file\"; filename=\"\"", "{}"), "file", "filename");
  expect(Purpose() + Field("name=\"file\"; filename=\"a\"", ""), "file", "is empty");
  expect(Purpose() + File() + Field("name=\"expires_after[anchor]\"", "created_at"),
         "expires_after[anchor]", "do not expire");
  expect(Purpose() + File() + Field("name=\"model\"", "x"), "model", "is not a field");
}

TEST(FileUploadTest, AnotherContentTypeIsRefused) {
  HttpRequest request = Form(Purpose() + File());
  request.headers = {{"Content-Type", "application/json"}};
  EXPECT_EQ(ParseFileUpload(request).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace caravan
