#include "coordinator/http/multipart.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kType[] = "multipart/form-data; boundary=XY";

/// Parses a body in which \n stands for CRLF.
absl::StatusOr<std::vector<FormPart>> Parse(const std::string& body,
                                            const std::string& type = kType) {
  // What is returned borrows from it.
  static auto& last_body = *new std::string;
  last_body = absl::StrReplaceAll(body, {{"\n", "\r\n"}});
  return ParseMultipartForm(type, last_body);
}

std::string Part(const std::string& disposition, const std::string& content) {
  return absl::StrCat("--XY\nContent-Disposition: ", disposition, "\n\n", content, "\n");
}

void ExpectRefused(const std::string& body, const std::string& says,
                   const std::string& type = kType) {
  const auto parts = Parse(body, type);
  EXPECT_EQ(parts.status().code(), absl::StatusCode::kInvalidArgument) << body.substr(0, 200);
  EXPECT_THAT(std::string(parts.status().message()), HasSubstr(says));
}

TEST(MultipartTest, ReadsWhatTheOpenAiClientSends) {
  // Node's FormData, as openai's npm package uploads a file.
  const auto parts = Parse(
      "------formdata-undici-012345678901\n"
      "Content-Disposition: form-data; name=\"purpose\"\n\nbatch\n"
      "------formdata-undici-012345678901\n"
      "Content-Disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\n"
      "Content-Type: application/octet-stream\n\n{\"a\": 1}\n{\"b\": 2}\n\n"
      "------formdata-undici-012345678901--\n",
      "multipart/form-data; boundary=----formdata-undici-012345678901");
  ASSERT_TRUE(parts.ok()) << parts.status();
  ASSERT_EQ(parts->size(), 2u);
  EXPECT_EQ((*parts)[0].name, "purpose");
  EXPECT_EQ((*parts)[0].filename, std::nullopt);
  EXPECT_EQ((*parts)[0].content, "batch");
  EXPECT_EQ((*parts)[1].name, "file");
  EXPECT_EQ((*parts)[1].filename, "in.jsonl");
  EXPECT_EQ((*parts)[1].content, "{\"a\": 1}\r\n{\"b\": 2}\r\n");
}

TEST(MultipartTest, AFormMayBeEmptyAndAContentToo) {
  const auto none = Parse("--XY--");
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_THAT(*none, IsEmpty());
  const auto parts = Parse(Part("form-data; name=a", "") + "--XY--\n");
  ASSERT_TRUE(parts.ok()) << parts.status();
  ASSERT_EQ(parts->size(), 1u);
  EXPECT_EQ((*parts)[0].content, "");
}

TEST(MultipartTest, PreambleEpilogueAndBlanksBehindABoundaryDoNotCount) {
  const auto parts =
      Parse("look:\n--XY \t\nContent-Disposition: form-data; name=a\n\n1\n--XY--bye");
  ASSERT_TRUE(parts.ok()) << parts.status();
  ASSERT_EQ(parts->size(), 1u);
  EXPECT_EQ((*parts)[0].content, "1");
}

TEST(MultipartTest, ALineThatOnlyBeginsLikeABoundaryIsContent) {
  const auto parts = Parse(Part("form-data; name=a", "x\n--XYZ\n--X\n--XY-\ny") + "--XY--");
  ASSERT_TRUE(parts.ok()) << parts.status();
  ASSERT_EQ(parts->size(), 1u);
  EXPECT_EQ((*parts)[0].content, "x\r\n--XYZ\r\n--X\r\n--XY-\r\ny");
}

TEST(MultipartTest, ContentMayHoldAnyByte) {
  std::string bytes;
  for (int i = 0; i < 256; ++i) bytes.push_back(static_cast<char>(i));
  const std::string body = absl::StrCat(
      "--XY\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n", bytes, "\r\n--XY--\r\n");
  const auto parts = ParseMultipartForm(kType, body);
  ASSERT_TRUE(parts.ok()) << parts.status();
  EXPECT_EQ((*parts)[0].content, bytes);
}

TEST(MultipartTest, ReadsNamesInEveryForm) {
  const auto name = [](const std::string& parameters) {
    const auto parts = Parse(Part("form-data; name=x; " + parameters, "") + "--XY--");
    EXPECT_TRUE(parts.ok()) << parts.status();
    return parts.ok() ? (*parts)[0].filename.value_or("(none)") : "(error)";
  };
  EXPECT_EQ(name("filename=a.jsonl"), "a.jsonl");
  EXPECT_EQ(name("FileName=\"a b;c=d.jsonl\" ;"), "a b;c=d.jsonl");
  EXPECT_EQ(name("filename=\"a\\\"b\\\\c.jsonl\""), "a\"b\\c.jsonl");
  EXPECT_EQ(name("filename=\"C:\\dir\\a.jsonl\""), "C:\\dir\\a.jsonl");
  EXPECT_EQ(name("filename=\"数据.jsonl\""), "数据.jsonl");
  EXPECT_EQ(name("filename=\"_.jsonl\"; filename*=utf-8''%E6%95%B0.jsonl"), "数.jsonl");
  EXPECT_EQ(name("filename=\"_.jsonl\"; filename*=utf-8''%E"), "_.jsonl");
  EXPECT_EQ(name("filename=\"\""), "");
  EXPECT_EQ(name("other=1"), "(none)");
}

TEST(MultipartTest, ABoundaryMayBeQuoted) {
  const auto parts = ParseMultipartForm("Multipart/Form-Data; charset=utf-8; boundary=\"a b:c\"",
                                        "--a b:c\r\ncontent-disposition:form-data; name=q\r\n\r\n1"
                                        "\r\n--a b:c--");
  ASSERT_TRUE(parts.ok()) << parts.status();
  EXPECT_EQ((*parts)[0].content, "1");
}

TEST(MultipartTest, RefusesAnotherContentTypeOrBoundary) {
  const std::string form = Part("form-data; name=a", "1") + "--XY--";
  ExpectRefused(form, "must be multipart/form-data", "");
  ExpectRefused(form, "must be multipart/form-data", "application/json");
  ExpectRefused(form, "must be multipart/form-data", "multipart/mixed; boundary=XY");
  ExpectRefused(form, "must be multipart/form-data", "multipart/form-data; boundary");
  ExpectRefused(form, "must be multipart/form-data", "multipart/form-data; boundary=\"XY");
  ExpectRefused(form, "names no boundary", "multipart/form-data");
  ExpectRefused(form, "names no boundary", "multipart/form-data; boundary=\"\"");
  ExpectRefused(form, "must be 1 to 70", "multipart/form-data; boundary=\"X\tY\"");
  ExpectRefused(form, "must be 1 to 70", "multipart/form-data; boundary=\"XY \"");
  ExpectRefused(form, "must be 1 to 70",
                absl::StrCat("multipart/form-data; boundary=", std::string(71, 'a')));
  ExpectRefused(form, "the boundary of Content-Type is not in it",
                "multipart/form-data; boundary=other");
  ExpectRefused("", "the boundary of Content-Type is not in it");
}

TEST(MultipartTest, RefusesAFormThatIsCutOff) {
  ExpectRefused("--XY\n", "part 1 is cut off");
  ExpectRefused("--XY", "the boundary of Content-Type is not in it");
  ExpectRefused(Part("form-data; name=a", "1"), "part 1 is cut off");
  ExpectRefused(Part("form-data; name=a", "1") + Part("form-data; name=b", "2"),
                "part 2 is cut off");
  ExpectRefused(Part("form-data; name=a", "1") + "--XY-", "part 1 is cut off");
  // Line breaks without carriage returns are no line breaks here.
  EXPECT_FALSE(
      ParseMultipartForm(kType, "--XY\nContent-Disposition: form-data; name=a\n\n1\n--XY--\n")
          .ok());
}

TEST(MultipartTest, RefusesPartsWithoutANameOrWithBrokenHeaders) {
  ExpectRefused("--XY\n\n1\n--XY--", "part 1 has no name");
  ExpectRefused("--XY\n--XY--", "part 1 has no empty line");
  ExpectRefused("--XY\nContent-Type: text/plain\n\n1\n--XY--", "part 1 has no name");
  ExpectRefused(Part("form-data", "1") + "--XY--", "part 1 has no name");
  ExpectRefused(Part("form-data; name=\"\"", "1") + "--XY--", "part 1 has no name");
  ExpectRefused(Part("form-data; name=a", "1") + Part("form-data; filename=f", "2") + "--XY--",
                "part 2 has no name");
  ExpectRefused(Part("attachment; name=a", "1") + "--XY--", "malformed Content-Disposition");
  ExpectRefused(Part("form-data; name", "1") + "--XY--", "malformed Content-Disposition");
  ExpectRefused(Part("form-data; name=\"a", "1") + "--XY--", "malformed Content-Disposition");
  ExpectRefused(Part("form-data; name=\"a\" b", "1") + "--XY--", "malformed Content-Disposition");
  ExpectRefused(Part("form-data; =a", "1") + "--XY--", "malformed Content-Disposition");
  ExpectRefused(Part("form-data; name=a\nContent-Disposition: form-data; name=b", "1") + "--XY--",
                "two headers Content-Disposition");
  ExpectRefused("--XY\nno header\n\n1\n--XY--", "part 1 has a header without a colon");
  ExpectRefused("--XY\nContent-Disposition: form-data; name=a\n1\n\n2\n--XY--",
                "part 1 has a header without a colon");
}

TEST(MultipartTest, BoundsHeadersAndParts) {
  ExpectRefused(absl::StrCat("--XY\nX: ", std::string(17 << 10, 'x'), "\n\n1\n--XY--"),
                "part 1 has more than 16 KiB of headers");
  std::string many_lines = "--XY\n";
  for (int i = 0; i < 2000; ++i) absl::StrAppend(&many_lines, "X: 12345678\n");
  ExpectRefused(many_lines + "\n1\n--XY--", "part 1 has more than 16 KiB of headers");
  std::string many_parts;
  for (int i = 0; i < 64; ++i) many_parts += Part("form-data; name=a", "1");
  EXPECT_TRUE(Parse(many_parts + "--XY--").ok());
  ExpectRefused(many_parts + Part("form-data; name=a", "1") + "--XY--", "more than 64 parts");
}

TEST(MultipartTest, EveryCutOfAFormIsRefusedOrReadWhole) {
  const std::string form =
      absl::StrReplaceAll(Part("form-data; name=\"file\"; filename=\"a\"", "--XYZ\n--XY-\n") +
                              Part("form-data; name=b", "") + "--XY--",
                          {{"\n", "\r\n"}});
  const auto whole = ParseMultipartForm(kType, form);
  ASSERT_TRUE(whole.ok()) << whole.status();
  for (size_t length = 0; length < form.size(); ++length) {
    EXPECT_FALSE(ParseMultipartForm(kType, absl::string_view(form).substr(0, length)).ok())
        << length;
  }
}

}  // namespace
}  // namespace caravan
