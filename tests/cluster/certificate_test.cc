#include "cluster/certificate.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

const absl::Time kNow =
    absl::FromCivil(absl::CivilSecond(2026, 3, 1, 12, 0, 0), absl::UTCTimeZone());
const Validity kYear = {kNow, absl::Hours(24 * 365)};

std::string Pem(const KeyAndCertificate& identity) {
  return identity.key_pem + identity.certificate_pem;
}

class CertificateTest : public ::testing::Test {
 protected:
  const KeyAndCertificate authority_ = *MakeAuthority(kYear);
  const KeyAndCertificate box_ = *IssueIdentity(authority_, {Role::kWorker, "box-a"}, kYear);
};

TEST_F(CertificateTest, SaysWhoseItIsAndHowLongItIsGood) {
  const absl::StatusOr<CertificateFacts> facts = ReadCertificate(Pem(box_));
  ASSERT_TRUE(facts.ok()) << facts.status();
  ASSERT_TRUE(facts->identity.ok());
  EXPECT_EQ(*facts->identity, (Identity{Role::kWorker, "box-a"}));
  EXPECT_EQ(facts->not_before, kNow - absl::Minutes(1));
  EXPECT_EQ(facts->not_after, kNow + absl::Hours(24 * 365));
  EXPECT_EQ(facts->fingerprint.size(), 64u);
  EXPECT_FALSE(ReadCertificate(authority_.certificate_pem)->identity.ok());
}

TEST_F(CertificateTest, EndsWithItsAuthorityAtTheLatest) {
  const absl::Time end = kNow + kYear.lifetime;
  const absl::Time later = end - absl::Hours(24 * 30);
  for (const auto& [days, expected] :
       {std::pair{29, later + absl::Hours(24 * 29)}, {30, end}, {31, end}, {3650, end}}) {
    const absl::StatusOr<KeyAndCertificate> box =
        IssueIdentity(authority_, {Role::kWorker, "box-a"}, {later, absl::Hours(24 * days)});
    ASSERT_TRUE(box.ok()) << box.status();
    EXPECT_EQ(ReadCertificate(box->certificate_pem)->not_after, expected) << days;
  }
}

TEST_F(CertificateTest, OneOfAnAuthorityThatHasEndedIsNotMade) {
  const absl::Time end = kNow + kYear.lifetime;
  EXPECT_TRUE(
      IssueIdentity(authority_, {Role::kWorker, "box-a"}, {end - absl::Seconds(1), absl::Hours(24)})
          .ok());
  const absl::Status late =
      IssueIdentity(authority_, {Role::kWorker, "box-a"}, {end, absl::Hours(24)}).status();
  EXPECT_EQ(late.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(late.message(), HasSubstr("the authority expired at 2027-03-01"));
}

TEST_F(CertificateTest, OneOfAnAuthorityThatIsNotValidYetIsNotMade) {
  const absl::Time begin = kNow - absl::Minutes(1);
  EXPECT_TRUE(IssueIdentity(authority_, {Role::kWorker, "a"}, {begin, absl::Hours(24)}).ok());
  const absl::Status early =
      IssueIdentity(authority_, {Role::kWorker, "a"}, {begin - absl::Seconds(1), absl::Hours(24)})
          .status();
  EXPECT_EQ(early.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(early.message(), HasSubstr("the authority is valid from 2026-03-01"));
}

TEST_F(CertificateTest, IsGoodWithItsKeyInAnyOrder) {
  EXPECT_TRUE(CheckIdentity(authority_.certificate_pem, Pem(box_), kNow).ok());
  EXPECT_TRUE(
      CheckIdentity(authority_.certificate_pem, box_.certificate_pem + box_.key_pem, kNow).ok());
}

TEST_F(CertificateTest, IsNotGoodBeforeAndAfterItsTime) {
  const absl::Status after =
      CheckIdentity(authority_.certificate_pem, Pem(box_), kNow + absl::Hours(24 * 365 + 1));
  EXPECT_EQ(after.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(after.message(), HasSubstr("expired at 2027-03-01"));
  const absl::Status before =
      CheckIdentity(authority_.certificate_pem, Pem(box_), kNow - absl::Hours(1));
  EXPECT_EQ(before.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(before.message(), HasSubstr("is the clock right?"));
}

TEST_F(CertificateTest, ItIsSaidWhetherItOrItsAuthorityIsNotGood) {
  const auto days = [](int number) { return absl::Hours(24 * number); };
  const KeyAndCertificate month =
      *IssueIdentity(authority_, {Role::kWorker, "a"}, {kNow + days(30), days(30)});
  const auto at = [&](absl::Time now) {
    const absl::Status status = CheckIdentity(authority_.certificate_pem, Pem(month), now);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return std::string(status.message());
  };
  EXPECT_THAT(at(kNow - days(1)),
              StartsWith("the certificate's authority is valid from 2026-03-01"));
  EXPECT_THAT(at(kNow + days(10)), StartsWith("the certificate is valid from 2026-03-31"));
  EXPECT_THAT(at(kNow + days(61)), StartsWith("the certificate expired at 2026-04-30"));
  EXPECT_THAT(at(kNow + days(366)),
              StartsWith("the certificate's authority expired at 2027-03-01"));
}

TEST_F(CertificateTest, IsOfOneAuthorityOnly) {
  const KeyAndCertificate other = *MakeAuthority(kYear);
  const absl::Status status = CheckIdentity(other.certificate_pem, Pem(box_), kNow);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("not of the authority in ca.pem"));
  // While authorities are exchanged both are trusted.
  EXPECT_TRUE(
      CheckIdentity(other.certificate_pem + authority_.certificate_pem, Pem(box_), kNow).ok());
}

TEST_F(CertificateTest, ABoxIsNoAuthority) {
  const KeyAndCertificate false_box = *IssueIdentity(box_, {Role::kCoordinator, "evil"}, kYear);
  const absl::Status status =
      CheckIdentity(authority_.certificate_pem,
                    false_box.key_pem + false_box.certificate_pem + box_.certificate_pem, kNow);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(CheckIdentity(box_.certificate_pem, Pem(false_box), kNow).ok());
}

TEST_F(CertificateTest, NeedsItsOwnKey) {
  const std::string key = *MakeKey();
  const absl::Status status =
      CheckIdentity(authority_.certificate_pem, key + box_.certificate_pem, kNow);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("the key is not the certificate's"));
}

TEST_F(CertificateTest, AnAuthoritysOwnCertificateNamesNobody) {
  EXPECT_EQ(CheckIdentity(authority_.certificate_pem, Pem(authority_), kNow).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CertificateTest, RefusesWhatIsNoPem) {
  for (const std::string& text :
       {std::string(), std::string("hello"), box_.key_pem, box_.certificate_pem.substr(0, 200)}) {
    EXPECT_EQ(ReadCertificate(text).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(CheckIdentity(text, Pem(box_), kNow).code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(CheckIdentity(authority_.certificate_pem, box_.certificate_pem, kNow).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CertificateTest, OfARequestOnlyTheKeyCounts) {
  const std::string key = *MakeKey();
  const absl::StatusOr<std::string> certificate =
      SignRequest(authority_, *MakeSigningRequest(key), {Role::kClient, "ann"}, kYear);
  ASSERT_TRUE(certificate.ok()) << certificate.status();
  EXPECT_TRUE(CheckIdentity(authority_.certificate_pem, key + *certificate, kNow).ok());
  EXPECT_EQ(*ReadCertificate(*certificate)->identity, (Identity{Role::kClient, "ann"}));
}

TEST_F(CertificateTest, ARequestMustBeSignedByItsKey) {
  std::string request = *MakeSigningRequest(*MakeKey());
  // Within the signature, which ends the text.
  const size_t end = request.find("\n-----END");
  request[end - 8] = request[end - 8] == 'A' ? 'B' : 'A';
  EXPECT_EQ(SignRequest(authority_, request, {Role::kWorker, "a"}, kYear).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SignRequest(authority_, "", {Role::kWorker, "a"}, kYear).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(CertificateTest, NamesThatWouldSayMoreAreRefused) {
  EXPECT_EQ(
      IssueIdentity(authority_, {Role::kWorker, "a,URI:caravan://cluster/coordinator/a"}, kYear)
          .status()
          .code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(CertificateTest, AnAuthorityNeedsItsOwnKey) {
  const KeyAndCertificate mixed = {*MakeKey(), authority_.certificate_pem};
  EXPECT_EQ(IssueIdentity(mixed, {Role::kWorker, "a"}, kYear).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(CertificateTest, SeveralAreToldApartAndTheOneOfAKeyIsFound) {
  const KeyAndCertificate other = *MakeAuthority(kYear);
  const std::string both =
      authority_.certificate_pem + other.key_pem + "words\n" + other.certificate_pem;
  EXPECT_THAT(SplitCertificates(both),
              ElementsAre(authority_.certificate_pem, other.certificate_pem));
  EXPECT_THAT(SplitCertificates(other.key_pem), IsEmpty());
  for (const KeyAndCertificate& each : {authority_, other}) {
    EXPECT_EQ(*CertificateOfKey(both, each.key_pem), each.certificate_pem);
  }
  EXPECT_EQ(CertificateOfKey(both, *MakeKey()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CertificateOfKey("", other.key_pem).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CertificateOfKey(both, "no key").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace caravan
