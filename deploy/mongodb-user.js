// Run once by the container of MongoDB, before it accepts connections: creates the service's user with its only right.
db.getSiblingDB("admin").createUser({
  user: "anker",
  pwd: require("fs").readFileSync("/run/secrets/mongodb_password", "utf8").trim(),
  roles: [{ role: "readWrite", db: process.env.MONGODB_DATABASE }],
});
