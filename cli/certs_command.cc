// caravan certs: the certificates by which the cluster's processes know one another.

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status_macros.h"
#include "cli/commands.h"
#include "cli/enrolment_client.h"
#include "cli/time_left.h"
#include "cli/validators.h"
#include "cluster/address.h"
#include "cluster/certificate.h"
#include "cluster/certificate_files.h"
#include "coordinator/enrolment_service.h"
#include "coordinator/join_tokens.h"

namespace caravan {
namespace {

// An authority outlives many certificates.
constexpr absl::Duration kAuthorityLifetime = absl::Hours(24 * 3650);
constexpr int kMaxDays = 3650;

/// What the subcommands share.
struct CertsFlags {
  std::string directory;  // of the authority, or where the result goes
  std::string name;
  std::string out;
  std::string authority;
  std::string address;
  std::string token;
  bool client = false;
  double hours = 1;
  int days = static_cast<int>(kDefaultCertificateLifetime / absl::Hours(24));

  absl::Duration lifetime() const { return absl::Hours(24) * days; }
};

/// Errors: AlreadyExists - one of the files is there.
absl::Status CheckNotThere(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    if (!FileExists(path)) continue;
    return absl::AlreadyExistsError(absl::StrCat(path, ": it is there already, and is kept"));
  }
  return absl::OkStatus();
}

/// Puts a new certificate with its key, and what it trusts, into a directory that has neither.
absl::Status WriteIdentity(const std::string& directory, const std::string& authorities,
                           const KeyAndCertificate& identity) {
  CARAVAN_RETURN_IF_ERROR(CheckNotThere({IdentityPath(directory), AuthorityPath(directory)}));
  CARAVAN_RETURN_IF_ERROR(MakePrivateDirectory(directory));
  CARAVAN_RETURN_IF_ERROR(
      WritePrivateFile(IdentityPath(directory), identity.key_pem + identity.certificate_pem));
  return WritePrivateFile(AuthorityPath(directory), authorities);
}

/// How long a new certificate of one of the authorities is good.
absl::StatusOr<std::string> HowLong(const std::string& pem, const std::string& authorities,
                                    absl::Time now) {
  CARAVAN_ASSIGN_OR_RETURN(const CertificateFacts facts, ReadCertificate(pem));
  bool ends_with_authority = false;
  for (const std::string& authority : SplitCertificates(authorities)) {
    CARAVAN_ASSIGN_OR_RETURN(const CertificateFacts issuer, ReadCertificate(authority));
    ends_with_authority |= issuer.not_after == facts.not_after;
  }
  return absl::StrCat(HowLongGood(facts.not_after, now),
                      ends_with_authority ? ", when its authority ends too" : "");
}

/// The same of every authority of a ca.pem.
absl::StatusOr<std::string> HowLongAuthorities(const std::string& pem, absl::Time now) {
  std::vector<std::string> each;
  for (const std::string& authority : SplitCertificates(pem)) {
    CARAVAN_ASSIGN_OR_RETURN(const CertificateFacts facts, ReadCertificate(authority));
    each.push_back(HowLongGood(facts.not_after, now));
  }
  return absl::StrJoin(each, " and ");
}

/// IssueIdentity by the authority of a directory, which errors name.
absl::StatusOr<KeyAndCertificate> IssueBy(const std::string& directory,
                                          const KeyAndCertificate& authority,
                                          const Identity& identity, const Validity& validity) {
  absl::StatusOr<KeyAndCertificate> issued = IssueIdentity(authority, identity, validity);
  if (!issued.ok()) return Annotate(issued.status(), AuthorityPath(directory));
  return issued;
}

absl::Status Init(const CertsFlags& flags) {
  const absl::Time now = absl::Now();
  CARAVAN_RETURN_IF_ERROR(CheckIdentityName(flags.name));
  CARAVAN_RETURN_IF_ERROR(
      CheckNotThere({AuthorityKeyPath(flags.directory), AuthorityPath(flags.directory),
                     IdentityPath(flags.directory)}));
  CARAVAN_ASSIGN_OR_RETURN(const KeyAndCertificate authority,
                           MakeAuthority({now, kAuthorityLifetime}));
  CARAVAN_ASSIGN_OR_RETURN(
      const KeyAndCertificate coordinator,
      IssueIdentity(authority, {Role::kCoordinator, flags.name}, {now, flags.lifetime()}));
  CARAVAN_RETURN_IF_ERROR(MakePrivateDirectory(flags.directory));
  CARAVAN_RETURN_IF_ERROR(WritePrivateFile(AuthorityKeyPath(flags.directory), authority.key_pem));
  CARAVAN_RETURN_IF_ERROR(WriteIdentity(flags.directory, authority.certificate_pem, coordinator));
  CARAVAN_ASSIGN_OR_RETURN(const std::string how_long,
                           HowLong(coordinator.certificate_pem, authority.certificate_pem, now));
  std::printf("made %s: a certificate authority and the coordinator's certificate; %s\n",
              flags.directory.c_str(), how_long.c_str());
  return absl::OkStatus();
}

absl::Status Add(const CertsFlags& flags, Role role) {
  const absl::Time now = absl::Now();
  CARAVAN_RETURN_IF_ERROR(CheckIdentityName(flags.name));
  const std::string out =
      !flags.out.empty()
          ? flags.out
          : JoinPath(JoinPath(flags.directory, role == Role::kClient ? "clients" : "boxes"),
                     flags.name);
  CARAVAN_ASSIGN_OR_RETURN(const KeyAndCertificate authority, ReadAuthority(flags.directory));
  CARAVAN_ASSIGN_OR_RETURN(const std::string authorities, ReadAuthorities(flags.directory));
  CARAVAN_ASSIGN_OR_RETURN(
      const KeyAndCertificate identity,
      IssueBy(flags.directory, authority, {role, flags.name}, {now, flags.lifetime()}));
  CARAVAN_RETURN_IF_ERROR(WriteIdentity(out, authorities, identity));
  CARAVAN_ASSIGN_OR_RETURN(const std::string how_long,
                           HowLong(identity.certificate_pem, authority.certificate_pem, now));
  std::printf("made %s: copy it to where %s runs, as the directory for --certs; %s\n", out.c_str(),
              flags.name.c_str(), how_long.c_str());
  return absl::OkStatus();
}

absl::Status Renew(const CertsFlags& flags) {
  const absl::Time now = absl::Now();
  const std::string path = IdentityPath(flags.directory);
  CARAVAN_ASSIGN_OR_RETURN(const std::string old, ReadPrivateFile(path));
  const absl::StatusOr<CertificateFacts> facts = ReadCertificate(old);
  if (!facts.ok()) return Annotate(facts.status(), path);
  if (!facts->identity.ok()) return Annotate(facts->identity.status(), path);
  const std::string& signer = flags.authority.empty() ? flags.directory : flags.authority;
  CARAVAN_ASSIGN_OR_RETURN(const KeyAndCertificate authority, ReadAuthority(signer));
  CARAVAN_ASSIGN_OR_RETURN(const std::string authorities, ReadAuthorities(signer));
  CARAVAN_ASSIGN_OR_RETURN(const KeyAndCertificate identity,
                           IssueBy(signer, authority, *facts->identity, {now, flags.lifetime()}));
  // In this order: what the new certificate is of is trusted before it is shown.
  CARAVAN_RETURN_IF_ERROR(ReplacePrivateFile(AuthorityPath(flags.directory), authorities));
  CARAVAN_RETURN_IF_ERROR(ReplacePrivateFile(path, identity.key_pem + identity.certificate_pem));
  CARAVAN_ASSIGN_OR_RETURN(const std::string how_long,
                           HowLong(identity.certificate_pem, authority.certificate_pem, now));
  CARAVAN_ASSIGN_OR_RETURN(const std::string authorities_how_long,
                           HowLongAuthorities(authorities, now));
  std::printf("renewed %s of %s: %s\n", path.c_str(), ToString(*facts->identity).c_str(),
              how_long.c_str());
  std::printf("        %s: %s\n", AuthorityPath(flags.directory).c_str(),
              authorities_how_long.c_str());
  return absl::OkStatus();
}

absl::Status Token(const CertsFlags& flags) {
  const absl::Time now = absl::Now();
  CARAVAN_ASSIGN_OR_RETURN(const std::string token,
                           JoinTokens(flags.directory)
                               .Make({flags.client ? Role::kClient : Role::kWorker, flags.name},
                                     now + absl::Hours(flags.hours), now));
  std::printf("%s\n", token.c_str());
  return absl::OkStatus();
}

absl::Status Join(const CertsFlags& flags) {
  CARAVAN_RETURN_IF_ERROR(CheckAddress(flags.address));
  std::string text = flags.token;
  if (text == "-") std::getline(std::cin, text);
  CARAVAN_ASSIGN_OR_RETURN(const JoinToken token, ParseJoinToken(text));
  // Before the token is used up.
  CARAVAN_RETURN_IF_ERROR(
      CheckNotThere({IdentityPath(flags.directory), AuthorityPath(flags.directory)}));
  CARAVAN_RETURN_IF_ERROR(MakePrivateDirectory(flags.directory));
  CARAVAN_ASSIGN_OR_RETURN(const Enrolled enrolled, Enrol(flags.address, token));
  CARAVAN_RETURN_IF_ERROR(
      WriteIdentity(flags.directory, enrolled.authorities_pem, enrolled.identity));
  CARAVAN_ASSIGN_OR_RETURN(
      const std::string how_long,
      HowLong(enrolled.identity.certificate_pem, enrolled.authorities_pem, absl::Now()));
  std::printf("made %s: the certificate of %s, for --certs; %s\n", flags.directory.c_str(),
              enrolled.name.c_str(), how_long.c_str());
  return absl::OkStatus();
}

absl::Status Show(const CertsFlags& flags) {
  CARAVAN_ASSIGN_OR_RETURN(const std::string authorities, ReadAuthorities(flags.directory));
  absl::StatusOr<CertificateFacts> authority = ReadCertificate(authorities);
  if (!authority.ok()) return Annotate(authority.status(), AuthorityPath(flags.directory));
  CARAVAN_ASSIGN_OR_RETURN(const std::string pem, ReadPrivateFile(IdentityPath(flags.directory)));
  absl::StatusOr<CertificateFacts> facts = ReadCertificate(pem);
  if (!facts.ok()) return Annotate(facts.status(), IdentityPath(flags.directory));
  const auto time = [](absl::Time at) {
    return absl::FormatTime("%Y-%m-%d %H:%M UTC", at, absl::UTCTimeZone());
  };
  std::printf("identity     %s\n", facts->identity.ok() ? ToString(*facts->identity).c_str() : "?");
  std::printf("valid until  %s\n", time(facts->not_after).c_str());
  std::printf("authority    %s, until %s\n", authority->fingerprint.c_str(),
              time(authority->not_after).c_str());
  const absl::Status usable = CheckIdentity(authorities, pem, absl::Now());
  return Annotate(usable, IdentityPath(flags.directory));
}

CLI::App* AddSubcommand(CLI::App& certs, const std::shared_ptr<CertsFlags>& flags,
                        CommandBody& body, const char* name, const char* help,
                        absl::Status (*run)(const CertsFlags&)) {
  CLI::App* const command = certs.add_subcommand(name, help);
  command->callback(
      [flags, run, &body] { body = [flags, run] { return ReportStatus(run(*flags)); }; });
  return command;
}

void AddDays(CLI::App& command, CertsFlags& flags) {
  command.add_option("--days", flags.days, "How long the certificate is good")
      ->check(CLI::Range(1, kMaxDays))
      ->capture_default_str();
}

}  // namespace

void AddCertsCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const certs = app.add_subcommand(
      "certs", "Make the certificates by which the cluster's processes know one another");
  certs->require_subcommand(1);
  const auto flags = std::make_shared<CertsFlags>();
  flags->name = "coordinator";
  const char* const authority_help = "Directory that caravan certs init made, with ca.key";

  CLI::App* command = AddSubcommand(
      *certs, flags, body, "init",
      "Make a cluster's authority and its coordinator's certificate, in a new directory", Init);
  command->add_option("DIRECTORY", flags->directory, "Where: for the coordinator's --certs")
      ->required()
      ->check(NotEmpty());
  command->add_option("--name", flags->name, "The coordinator's name in its certificate")
      ->capture_default_str();
  AddDays(*command, *flags);

  command = AddSubcommand(*certs, flags, body, "add-box", "Make the certificate of a box's workers",
                          [](const CertsFlags& f) { return Add(f, Role::kWorker); });
  command->add_option("NAME", flags->name, "The box's name in its certificate")->required();
  command->add_option("DIRECTORY", flags->directory, authority_help)->required();
  command->add_option("--out", flags->out,
                      "Where the certificate and its key go; DIRECTORY/boxes/NAME if not given");
  AddDays(*command, *flags);

  command = AddSubcommand(*certs, flags, body, "add-client",
                          "Make the certificate of somebody who submits jobs",
                          [](const CertsFlags& f) { return Add(f, Role::kClient); });
  command->add_option("NAME", flags->name, "His name in it")->required();
  command->add_option("DIRECTORY", flags->directory, authority_help)->required();
  command->add_option("--out", flags->out,
                      "Where the certificate and its key go; DIRECTORY/clients/NAME if not given");
  AddDays(*command, *flags);

  command = AddSubcommand(
      *certs, flags, body, "renew",
      "Replace a directory's certificate and key by new ones of the same name; processes that use "
      "the directory take them for their next connections",
      Renew);
  command->add_option("DIRECTORY", flags->directory, "Whose certificate")->required();
  command->add_option("--authority", flags->authority,
                      "Directory with the ca.key that signs; DIRECTORY itself if not given");
  AddDays(*command, *flags);

  command = AddSubcommand(*certs, flags, body, "token",
                          "Print a token for which a coordinator that serves gives one certificate",
                          Token);
  command->add_option("NAME", flags->name, "Whom the certificate is for: a box")->required();
  command
      ->add_option("DIRECTORY", flags->directory,
                   "The coordinator's --certs directory, with ca.key")
      ->required();
  command->add_flag("--client", flags->client, "For somebody who submits jobs, not for a box");
  command->add_option("--hours", flags->hours, "How long the token is good")
      ->check(CLI::Range(0.0, 8760.0))
      ->capture_default_str();

  command = AddSubcommand(
      *certs, flags, body, "join",
      "Get a certificate for a token: the key is made here, and never leaves this box", Join);
  command->add_option("HOST:PORT", flags->address, "Of the coordinator")->required();
  command->add_option("TOKEN", flags->token, "The token; - reads it from standard input")
      ->required();
  command->add_option("DIRECTORY", flags->directory, "Where it goes: for this box's --certs")
      ->required()
      ->check(NotEmpty());

  command = AddSubcommand(*certs, flags, body, "show",
                          "Say whose certificate a directory has, and until when", Show);
  command->add_option("DIRECTORY", flags->directory, "A --certs directory")->required();
}

}  // namespace caravan
