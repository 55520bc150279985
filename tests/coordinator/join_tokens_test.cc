#include "coordinator/join_tokens.h"

#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "cluster/certificate_files.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);
const Identity kBox = {Role::kWorker, "box-c"};

class JoinTokensTest : public ::testing::Test {
 protected:
  JoinTokensTest() {
    const KeyAndCertificate authority = *MakeAuthority({kNow, absl::Hours(24)});
    CARAVAN_CHECK(WritePrivateFile(AuthorityKeyPath(dir_.path()), authority.key_pem).ok());
    CARAVAN_CHECK(WritePrivateFile(AuthorityPath(dir_.path()), authority.certificate_pem).ok());
    fingerprint_ = ReadCertificate(authority.certificate_pem)->fingerprint;
  }

  JoinToken Make(absl::Duration lifetime = absl::Hours(1)) {
    const absl::StatusOr<std::string> text = tokens_.Make(kBox, kNow + lifetime, kNow);
    CARAVAN_CHECK(text.ok());
    return *ParseJoinToken(*text);
  }
  std::string FileOf(const JoinToken& token) const {
    return absl::StrCat(dir_.path(), "/tokens/", token.id);
  }

  const TempDir dir_;
  JoinTokens tokens_{dir_.path()};
  std::string fingerprint_;
};

TEST_F(JoinTokensTest, ATokenIsGoodOnceForWhomItWasMade) {
  const JoinToken token = Make();
  EXPECT_EQ(token.fingerprint, fingerprint_);
  const absl::StatusOr<Identity> identity = tokens_.Redeem(token.id, token.secret, kNow);
  ASSERT_TRUE(identity.ok()) << identity.status();
  EXPECT_EQ(*identity, kBox);
  EXPECT_EQ(tokens_.Redeem(token.id, token.secret, kNow).status().code(),
            absl::StatusCode::kPermissionDenied);
}

TEST_F(JoinTokensTest, ItsSecretIsNotOnDisk) {
  const JoinToken token = Make();
  const absl::StatusOr<std::string> file = ReadPrivateFile(FileOf(token));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(*file, Not(HasSubstr(token.secret)));
}

TEST_F(JoinTokensTest, AWrongSecretDoesNotUseItUp) {
  const JoinToken token = Make();
  EXPECT_EQ(tokens_.Redeem(token.id, std::string(32, '0'), kNow).status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(tokens_.Redeem(token.id, token.secret, kNow).ok());
}

TEST_F(JoinTokensTest, ExpiresAndIsThenRemoved) {
  const JoinToken token = Make(absl::Minutes(1));
  EXPECT_EQ(tokens_.Redeem(token.id, token.secret, kNow + absl::Minutes(1)).status().code(),
            absl::StatusCode::kPermissionDenied);
  ASSERT_TRUE(tokens_.Make(kBox, kNow + absl::Hours(2), kNow + absl::Hours(1)).ok());
  EXPECT_FALSE(std::filesystem::exists(FileOf(token)));
}

TEST_F(JoinTokensTest, AnIdNamesNoOtherFile) {
  for (const char* id :
       {"", ".", "..", "../identity.pem", "../../etc/passwd", "ABCDEF0123456789"}) {
    EXPECT_EQ(tokens_.Redeem(id, std::string(32, '0'), kNow).status().code(),
              absl::StatusCode::kPermissionDenied)
        << id;
  }
}

TEST_F(JoinTokensTest, AFileThatIsNoTokensIsNone) {
  const JoinToken token = Make();
  for (const char* text : {"", "x y z", "worker/a"}) {
    ASSERT_TRUE(ReplacePrivateFile(FileOf(token), text).ok());
    EXPECT_FALSE(tokens_.Redeem(token.id, token.secret, kNow).ok()) << text;
  }
}

TEST_F(JoinTokensTest, NeedTheAuthoritysKey) {
  const TempDir empty;
  EXPECT_EQ(JoinTokens(empty.path()).Make(kBox, kNow + absl::Hours(1), kNow).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(JoinTokensTest, OtherTextIsNoToken) {
  const std::string good = *tokens_.Make(kBox, kNow + absl::Hours(1), kNow);
  EXPECT_TRUE(ParseJoinToken(absl::StrCat(" ", good, "\n")).ok());
  for (const std::string& text :
       {std::string(), good.substr(1), good.substr(0, good.size() - 1), absl::StrCat(good, "."),
        absl::StrCat("caravan2", good.substr(8))}) {
    const absl::Status status = ParseJoinToken(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(status.message(), Not(HasSubstr(good.substr(10, 20))));
  }
}

}  // namespace
}  // namespace caravan
